"""Composition of configurations, and what is said about mistakes in them."""

import dataclasses
import enum
import math
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from mtplug.cli.train import main
from mtplug.config import explain, load_config, to_plain, to_yaml
from mtplug.config.build import _dataclass, load_resolved, yaml_of
from mtplug.config.compose import parse
from mtplug.config.schema import DataConfig, FilterConfig, FreezeConfig, InitFromConfig
from mtplug.errors import UserError


def load(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, list(overrides))[0]


def error_of(tmp_path, text, *overrides):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_defaults_are_the_papers(tmp_path):
    run = load(tmp_path, "")
    assert (run.architecture.config.dim, run.architecture.config.encoder_layers) == (512, 6)
    assert run.optimizer.config.beta2 == 0.98
    assert [m.name for m in run.validation.metrics] == ["bleu", "chrf"]


@pytest.mark.parametrize(
    "code", ["no", "on", "y", "NO", "1e3", "2024-01-01", "0x10", "null_", "~x"]
)
def test_text_stays_as_it_was_written(tmp_path, code):
    assert load(tmp_path, f"task: {{target_lang: {code}}}").task.config.target_lang == code
    run = load(tmp_path, "", f"task.target_lang={code}")
    assert run.task.config.target_lang == code


@pytest.mark.parametrize(
    ("written", "value"), [("1e-4", 1e-4), ("5", 5.0), (".5", 0.5), ("'0.1'", 0.1), ("1_0.0", 10.0)]
)
def test_numbers_in_all_spellings(tmp_path, written, value):
    assert load(tmp_path, f"optimizer: {{lr: {written}}}").optimizer.config.lr == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\noptimzer: {lr: 1}", "run.yaml:1: unknown key 'a'"),
        ("seed: 3\noptimzer: {lr: 1}", "run.yaml:2: unknown key 'optimzer'; did you mean 'optimizer'?"),
        ("training:\n  max_update: 3", "run.yaml:2: unknown key 'max_update' of training; did you mean 'max_updates'?"),
        ("optimizer:\n\n  learning: 1", "run.yaml:3: unknown key 'learning' of optimizer"),
        ("architecture:\n  position: {nam: x}", "run.yaml:2: unknown key 'nam' of architecture.position"),
        ("architecture: {name: transfomer}", "run.yaml:1: architecture.name: unknown architecture 'transfomer'; did you mean 'transformer'?"),
        ("seed: x", "run.yaml:1: seed: expected a whole number, got 'x'"),
        ("seed: 1.5", "run.yaml:1: seed: expected a whole number, got '1.5'"),
        ("seed: [1]", "run.yaml:1: seed: expected a whole number, got a list"),
        ("seed: {a: 1}", "run.yaml:1: seed: expected a whole number, got a mapping"),
        ("seed:", "run.yaml:1: seed: expected a whole number, got null"),
        ("optimizer: {lr: fast}", "run.yaml:1: optimizer.lr: expected a number, got 'fast'"),
        ("validation: {translate: maybe}", "run.yaml:1: validation.translate: expected true or false, got 'maybe'"),
        ("data: {on_long: drop}", "run.yaml:1: data.on_long: 'drop' is none of skip, error, truncate, split"),
        ("training: 3", "run.yaml:1: training: expected a mapping of TrainingConfig fields, got '3'"),
        ("task: null", "run.yaml:1: task cannot be null; give it a name"),
        ("architecture: {dim: 30, heads: 4}", "run.yaml:1: architecture: 4 heads do not divide dim 30"),
        ("seed: 1\nseed: 2", "run.yaml:2: 'seed' is given twice"),
        ("seed: [1", "no valid YAML"),
        ("- 1", "expected a mapping of configuration groups"),
        ("seed: ${optimizer.lr}", "cannot be resolved"),
        ("data: {train: [{source: a}, {sauce: b}]}", "unknown key 'sauce' of data.train.1; did you mean 'source'?"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_place_and_remedy(tmp_path, text, message):
    assert message in error_of(tmp_path, text)


def test_mistakes_on_the_command_line(tmp_path):
    assert error_of(tmp_path, "", "optimzer.lr=1") == (
        "command line: unknown key 'optimzer'; did you mean 'optimizer'?"
    )
    assert error_of(tmp_path, "search: {beam: 3}", "search.name=rerank") == (
        "command line: search: forward and reverse: give at least one run to rerank with"
    )
    # Also where a file names the component: what does not belong to it is not dropped.
    assert error_of(tmp_path, "lr_scheduler: {name: inverse_sqrt}", "lr_scheduler.final=1") == (
        "command line: unknown key 'final' of lr_scheduler; known: name, warmup_updates"
    )
    # Of two values that do not go together the one that came last is to blame.
    assert error_of(tmp_path, "architecture: {dim: 30}", "architecture.heads=4").startswith(
        "command line: architecture: 4 heads do not divide dim 30"
    )
    assert "is neither key=value" in error_of(tmp_path, "", "seed")
    assert "is neither key=value" in error_of(tmp_path, "", "=3")
    assert "expected a whole number" in error_of(tmp_path, "", "seed=x")


@pytest.mark.parametrize(
    ("setting", "limits"),
    [
        ("seed=-1", "from 0 to 4294967295"),
        ("data.max_length=0", "at least 1"),
        ("data.workers=-1", "at least 0"),
        ("data.train={source: a, target: b, weight: -1}", "at least 0"),
        ("tokenizer.vocab_size=2", "from 4 to 2000000"),
        ("tokenizer.vocab_size=100000000", "from 4 to 2000000"),  # whose model took all memory
        ("tokenizer.character_coverage=2", "from 0 to 1"),
        ("architecture.dim=-4", "at least 1"),
        ("architecture.heads=0", "at least 1"),
        ("architecture.dropout=nan", "from 0 to 1"),
        ("optimizer.lr=-1", "at least 0"),
        ("optimizer.beta1=2", "at least 0 and below 1"),
        ("training.max_updates=0", "at least 1"),
        ("training.accumulate=0", "at least 1"),
        ("training.max_tokens=0", "at least 1"),
        ("training.clip_norm=-1", "at least 0"),
        ("validation.every_updates=-2", "at least 0"),
        ("checkpoint.keep_last=0", "at least 1"),
        ("logging.samples=-1", "at least 0"),
        ("optimizer.lr=inf", "at least 0 and finite"),
        ("search.max_ratio=-1", "at least 0"),
    ],
)
def test_numbers_out_of_range_are_told_before_any_work(tmp_path, setting, limits):
    """What a run cannot mean; --dry-run called such configurations ready, and a run failed or never ended."""
    key = setting.partition("=")[0].rpartition(".")[2].replace("train", "weight")
    message = error_of(tmp_path, "architecture: {dropout: 0.5}", setting)
    assert f"{key} must be {limits}, not " in message and message.startswith("command line: ")
    assert ": : " not in message  # `seed` is in no group


def test_missing_file_names_those_that_are_there(tmp_path):
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(UserError, match=r"absent.yaml: no such file; in that folder: there.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_a_setting_is_no_configuration_file(tmp_path):
    with pytest.raises(UserError, match="run: this is a setting; the"):
        load_config(tmp_path / "training.finetune_from=demo/run")


def test_extends_lays_files_and_command_line_over_each_other(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 1\noptimizer: {lr: 1.0, beta1: 0.5}\n")
    (tmp_path / "other.yaml").write_text("seed: 2\n")
    run = load(tmp_path, "extends: [base.yaml, other.yaml]\noptimizer: {lr: 2.0}", "seed=3")
    assert (run.seed, run.optimizer.config.lr, run.optimizer.config.beta1) == (3, 2.0, 0.5)


def test_extends_is_relative_to_its_file_and_refuses_cycles(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mid.yaml").write_text("extends: low.yaml\n")
    (tmp_path / "sub" / "low.yaml").write_text("seed: 9\n")
    assert load(tmp_path, "extends: sub/mid.yaml").seed == 9
    (tmp_path / "sub" / "low.yaml").write_text("extends: mid.yaml\n")
    assert "extends itself" in error_of(tmp_path, "extends: sub/mid.yaml")


def test_new_name_of_a_component_drops_what_described_the_old_one(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "lr_scheduler: {name: cosine, final: 0.1, warmup_updates: 7}\n"
    )
    run = load(tmp_path, "extends: base.yaml\nlr_scheduler: {name: inverse_sqrt}")
    assert (run.lr_scheduler.name, run.lr_scheduler.config.warmup_updates) == ("inverse_sqrt", 7)
    run = load(tmp_path, "extends: base.yaml", "lr_scheduler.name=inverse_sqrt")
    assert run.lr_scheduler.config.warmup_updates == 7
    message = error_of(tmp_path, "extends: base.yaml\nlr_scheduler: {name: inverse_sqrt, final: 1}")
    assert "unknown key 'final' of lr_scheduler" in message


def test_of_a_saved_run_another_component_has_its_own_defaults(tmp_path):
    """`search.name=alternatives` of a run that searched with a beam gave one alternative, the beam's `nbest`."""
    file = tmp_path / "config.yaml"
    text = "search: {name: beam, max_extra: 7}"
    file.write_text(to_yaml(load(tmp_path, text)))
    ours = load_resolved(file, ["search.name=alternatives"]).search.config
    assert (ours.nbest, ours.max_extra) == (5, 7)  # what the run chose stays
    ours = load_resolved(file, ["search.name=alternatives", "search.nbest=1"]).search.config
    assert ours.nbest == 1
    assert load_resolved(file, ["search={name: alternatives, nbest: 1}"]).search.config.nbest == 1
    file.write_text(to_yaml(load(tmp_path, "search: sampling")))
    assert load_resolved(file, ["search.name=mbr"]).search.config.epsilon == 0.02
    assert load_resolved(file, ["search.name=sampling"]).search.config.epsilon == 0


def test_component_may_be_given_by_its_name_alone(tmp_path):
    assert load(tmp_path, "optimizer: adamw").optimizer.config.weight_decay == 0.01


def test_one_corpus_or_several(tmp_path):
    one = load(tmp_path, "data: {train: {source: a, target: b}}", "data.train.source=c")
    assert [c.config.source for c in one.data.train] == ["c"]
    # As messages about a run's settings spell it.
    one = load(tmp_path, "data: {train: {source: a, target: b}}", "data.train.0.source=c")
    assert [(c.config.source, c.config.target) for c in one.data.train] == [("c", "b")]
    text = "data: {train: [{source: a, target: b}, {name: tsv, path: x, weight: 0.5}]}"
    two = load(tmp_path, text, "data.train.1.weight=2", "data.train.0.source=z")
    assert [c.name for c in two.data.train] == ["text", "tsv"]
    assert (two.data.train[0].config.source, two.data.train[1].config.weight) == ("z", 2.0)
    for n in (2, 5):
        said = error_of(tmp_path, text, f"data.train.{n}.weight=2")
        assert f"has 2 entries, none numbered {n}" in said


def test_a_corpus_of_another_format_takes_nothing_from_the_one_before(tmp_path):
    """`source` is a file of text, but a key of JSON lines: the file's name was looked for in each line."""
    text = "data: {train: {source: a, target: b, weight: 2}}"
    new = "{name: jsonl, path: x, target: c}"
    layers = [
        load(tmp_path, text, f"data.train={new}"),
        load(tmp_path, text, "data.train.path=x", "data.train.target=c", "data.train.name=jsonl"),
        load(tmp_path, text.replace("{source", "[{source").replace("}}", "}]}"), f"data.train.0={new}"),
    ]  # fmt: skip
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "jsonl.yaml").write_text(f"extends: base.yaml\ndata: {{train: {new}}}")
    layers.append(load(tmp_path, "extends: jsonl.yaml"))
    for run in layers:
        config = run.data.train[0].config
        assert (config.path, config.source, config.target, config.weight) == (
            "x",
            "translation.{lang}",
            "c",
            1.0,
        )
    run = load(tmp_path, "extends: jsonl.yaml\ndata: {train: {path: y, weight: 3}}")
    config = run.data.train[0].config
    assert (config.path, config.target, config.weight) == ("y", "c", 3.0)
    # What was set for a format is there again where a third layer goes back to it.
    (tmp_path / "other.yaml").write_text(
        "extends: base.yaml\ndata: {train: {name: jsonl, path: x}}"
    )
    back = load(tmp_path, "extends: other.yaml\ndata: {train: {name: text}}").data.train[0]
    assert (back.config.source, back.config.target, back.config.weight) == ("a", "b", 2.0)
    same = load(tmp_path, text, "data.train={name: text, target: c}").data.train[0].config
    assert (same.source, same.target, same.weight) == ("a", "c", 2.0)


def test_interpolation_reaches_other_values(tmp_path):
    run = load(
        tmp_path,
        "task: {source_lang: en, target_lang: no}\nrun_dir: runs/${task.source_lang}-${task.target_lang}",
    )
    assert run.run_dir == "runs/en-no"


def test_saved_configuration_reads_back_equal(tmp_path):
    run = load(
        tmp_path,
        "task: {target_lang: no}\ndata: {train: [{source: a, target: '1e3'}]}\n"
        "optimizer: {name: adamw, lr: 1e-9}\nvalidation: {metrics: [{name: ter}]}",
    )
    (tmp_path / "saved.yaml").write_text(to_yaml(run))
    again = load_config(tmp_path / "saved.yaml")[0]
    assert to_plain(again) == to_plain(run)


def test_explain_tells_where_each_value_came_from(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 1\ntraining:\n  max_updates: 5\n")
    path = tmp_path / "run.yaml"
    path.write_text(
        "extends: base.yaml\noptimizer:\n  lr: 0.5\ntokenizer: {user_symbols: [<x>]}\n"
        "data:\n  train:\n  - {source: a, target: b}\n"
        "  - source: c\n    target: d\n"
        "training:\n  init_from:\n    path: runs/a\n    rename: {encoder.: decoder.}\n"
    )
    run, origins = load_config(path, ["training.accumulate=4"])
    rows = {key: (value, origin) for key, value, origin in explain(run, origins)}
    assert rows["training.max_updates"] == ("5", f"{tmp_path}/base.yaml:3")
    assert rows["optimizer.lr"] == ("0.5", f"{path}:3")
    assert rows["training.accumulate"] == ("4", "command line")
    assert rows["training.clip_norm"] == ("1.0", "default of TrainingConfig")
    assert rows["optimizer.beta1"] == ("0.9", "default of AdamConfig")
    assert rows["architecture.position.name"] == ("sinusoidal", "default of TransformerConfig")
    # A list is one value, or has the places of its entries; a mapping's keys have its place.
    assert rows["tokenizer.user_symbols"] == ("['<x>']", f"{path}:4")
    assert rows["data.train.1.target"] == ("d", f"{path}:9")
    assert rows["data.train.1.weight"] == ("1.0", "default of TextConfig")
    assert rows["training.init_from.0.rename.encoder."] == ("decoder.", f"{path}:13")
    assert rows["data.test"] == ("[]", "default of DataConfig")
    assert rows["peft"] == ("null", "default of RunConfig")


def test_command_prints_one_line_and_exits_with_2(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("")
    assert main([str(path), "optimzer.lr=1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "did you mean 'optimizer'" in captured.err
    assert main([str(path), "--print-config"]) == 0
    assert "label_smoothed_cross_entropy" in capsys.readouterr().out
    assert main([str(path), "--explain"]) == 0
    assert "default of TrainingConfig" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["optimizer: sgd", "optimizer: {name: sgd}"])
@pytest.mark.parametrize(
    "lines", [["optimizer.lr=0.1"], ["optimizer={lr: 0.1}"], ["optimizer={name: sgd, lr: 0.1}"]]
)
def test_the_short_form_of_a_component_is_the_long_one_in_every_layer(tmp_path, file, lines):
    """A later layer that set anything of the group dropped the name, and the default came back."""
    path = tmp_path / "run.yaml"
    path.write_text(f"{file}\ntraining: {{init_from: runs/a}}\n")
    run, origins = load_config(path, lines)
    assert (run.optimizer.name, run.optimizer.config.lr) == ("sgd", 0.1)
    assert origins["optimizer.lr"] == "command line"
    above = tmp_path / "above.yaml"
    above.write_text("extends: run.yaml\noptimizer: {lr: 0.2}\narchitecture: {dim: 64}\n")
    run, _ = load_config(
        above, ["architecture=lstm", "validation.search=beam", "validation.search.beam=2"]
    )
    assert (run.optimizer.name, run.optimizer.config.lr) == ("sgd", 0.2)
    assert (run.architecture.name, run.architecture.config.dim) == ("lstm", 64)
    assert run.validation.search.config.beam == 2
    run, _ = load_config(
        above, ["optimizer=adamw", "peft=lora", "peft.rank=4"]
    )  # as optimizer.name=adamw
    assert (run.optimizer.name, run.optimizer.config.lr, run.peft.config.rank) == ("adamw", 0.2, 4)
    for short in ("peft=lora", "peft.name=lora"):
        assert load_config(above, [short, "peft=null"])[0].peft is None
    # What is no component is replaced, as before.
    run, _ = load_config(above, ["training.init_from={path: runs/b, parameters: x.*}"])
    assert [(s.path, s.parameters) for s in run.training.init_from] == [("runs/b", "x.*")]
    run, _ = load_config(
        above, ["training.init_from={path: runs/b, parameters: x.*}", "training.init_from=runs/c"]
    )
    assert [(s.path, s.parameters) for s in run.training.init_from] == [("runs/c", "*")]


def test_the_short_form_holds_in_lists_and_entries(tmp_path):
    """chrf became bleu when something of it was set."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "validation: {metrics: [chrf, bleu]}\ntraining: {freeze: ['encoder.*'], init_from: runs/a}\noptimizer: sgd\n"
    )
    run, _ = load_config(path, ["validation.metrics.1.lowercase=true", "training.freeze.0.until=5",
                                "training.init_from.parameters=x.*", "optimizer.lr=1", "run_dir='runs/${optimizer}'"])  # fmt: skip
    assert [(m.name, getattr(m.config, "lowercase", None)) for m in run.validation.metrics] == [
        ("chrf", None),
        ("bleu", True),
    ]
    assert [(f.parameters, f.until) for f in run.training.freeze] == [("encoder.*", 5)]
    assert [(s.path, s.parameters) for s in run.training.init_from] == [("runs/a", "x.*")]
    assert run.run_dir == "runs/sgd"
    for name, text in (("a", "training: {freeze: {parameters: 'decoder.*', until: 3}}"), ("b0", "training: {freeze: {parameters: enc}}"),
                       ("b", "extends: b0.yaml\ntraining: {freeze: zzz}"), ("c", "extends: [a.yaml, b.yaml]")):  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(text + "\n")
    run, _ = load_config(tmp_path / "c.yaml", [])
    assert [(f.parameters, f.until) for f in run.training.freeze] == [("zzz", 0)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[1]", "pair: expected a list of 2, got one of 1"),
        ("[1, 2, 3]", "pair: expected a list of 2, got one of 3"),
        ("[1, a]", "pair.1: expected a number, got 'a'"),
    ],
)
def test_a_tuple_has_as_many_values_as_its_type_says(given, said):
    @dataclasses.dataclass
    class Own:
        pair: tuple[int, float] = (1, 2.0)
        many: tuple[int, ...] = ()

    with pytest.raises(UserError, match=re.escape(said)):
        _dataclass(Own, parse(f"pair: {given}", "own"), "", {})
    made = _dataclass(Own, parse("{pair: [3, 0.5], many: [1, 2, 3]}", "own"), "", {})
    assert made.pair == (3, 0.5) and made.many == (1, 2, 3)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Inner:
    size: int = 3

    def __post_init__(self):
        if self.size < 0:
            raise TypeError(f"size must not be {self.size}")


@dataclasses.dataclass
class EveryType:
    """What a plugin's settings may be of."""

    needed: float
    level: Literal[1, 2, "best"] = 1
    colour: Colour = Colour.RED
    several: list[int] = dataclasses.field(default_factory=list)
    either: int | str = 0
    limit: int | None = 5
    names: dict[str, float] = dataclasses.field(default_factory=dict)
    inner: Inner = dataclasses.field(default_factory=Inner)
    nested: dict[str, list[bool]] = dataclasses.field(default_factory=dict)
    place: Path = Path("x")
    anything: Any = None
    made: int = dataclasses.field(default=7, init=False)


def test_values_of_every_type_are_read_and_written_back():
    text = (
        "{needed: 1, level: 2, colour: BLUE, several: [1, 2], either: x1, limit: null, names: {a: 1e1}, "
        "inner: {size: 4}, nested: {a: [yes, Off]}, place: a/b, anything: [{k: 1}, null]}"
    )
    made = _dataclass(EveryType, parse(text, "own"), "", {})
    expected = EveryType(1.0, 2, Colour.BLUE, [1, 2], "x1", None, {"a": 10.0}, Inner(4),
                         {"a": [True, False]}, Path("a/b"), [{"k": "1"}, None])  # fmt: skip
    assert made == expected and type(made.level) is int
    assert _dataclass(EveryType, parse("{needed: 1, either: 3}", "own"), "", {}).either == 3
    written = to_plain(made)
    assert written.pop("made") == 7  # which nobody can set
    assert _dataclass(EveryType, parse(yaml_of(written), "own"), "", {}) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("level: 3", "own:1: level: expected one of 1, 2, best, got '3'"),
        ("colour: GREEN", "own:1: colour: expected one of RED, BLUE, got 'GREEN'"),
        ("several: 1", "own:1: several: expected a list, got '1'"),
        ("several: [1, x]", "own:1: several.1: expected a whole number, got 'x'"),
        ("limit: many", "own:1: limit: expected a whole number, got 'many'"),
        ("names: [a]", "own:1: names: expected a mapping, got a list"),
        ("names: {a: b}", "own:1: names.a: expected a number, got 'b'"),
        ("either: null", "own:1: either: expected text, got null"),
        ("inner: {size: x}", "own:1: inner.size: expected a whole number, got 'x'"),
        ("inner: [1]", "own:1: inner: expected a mapping, got a list"),
        ("inner: {size: -1}", "own:1: inner: size must not be -1"),
        ("nested: {a: [maybe]}", "own:1: nested.a.0: expected true or false, got 'maybe'"),
        ("made: 1", "own:1: unknown key 'made'"),
        ("level: 1", "needed must be given: EveryType has no default for it"),
    ],
)
def test_a_value_of_another_type_is_told_with_its_place(given, said):
    needed = "" if "needed" in said else "needed: 1, "
    with pytest.raises(UserError) as caught:
        _dataclass(EveryType, parse(f"{{{needed}{given}}}", "own"), "", {})
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("cls", "inside", "beyond"),
    [
        (FilterConfig, {"min_length": 0, "max_length": 0}, {"min_length": -1}),
        (FilterConfig, {"min_length": 3, "max_length": 3}, {"min_length": 4, "max_length": 3}),
        (FilterConfig, {"min_length": 3, "max_length": 0}, {"max_length": -1}),
        (FilterConfig, {"max_ratio": 1.0}, {"max_ratio": 0.5}),
        (FilterConfig, {"max_ratio": 0.0}, {"max_ratio": math.nan}),
        (DataConfig, {"temperature": 1e-9}, {"temperature": 0.0}),
        (DataConfig, {"temperature": 5.0}, {"temperature": math.nan}),
        (FreezeConfig, {"parameters": "a", "since": 3, "until": 3}, {"parameters": "a", "since": 3, "until": 2}),
        (FreezeConfig, {"parameters": "a", "since": 3, "until": 0}, {"parameters": "a", "since": 0}),
        (FreezeConfig, {"parameters": "a"}, {"parameters": " "}),
        (InitFromConfig, {"path": "a"}, {}),
    ],
)  # fmt: skip
def test_limits_of_settings_are_themselves_allowed(cls, inside, beyond):
    cls(**inside)
    with pytest.raises(ValueError):
        cls(**beyond)


@pytest.mark.parametrize(
    "text", ["${seed}", "${optimizer}", "${", r"\${seed}", "a\\\\${x}\\", "$${y", "${${z}}", "}${"]
)
def test_literal_text_survives_the_saved_configuration(tmp_path, text):
    """`${…}` of a value was an interpolation, or none at all, when a run's own config.yaml was read again."""
    written = re.sub(r"(\\*)\$\{", r"\1\1\\${", text).replace("'", "''")
    source = f"data: {{train: [{{source: a, prefix: '{written}'}}]}}\ntokenizer: {{user_symbols: ['{written}']}}"
    run = load(tmp_path, source)
    again = load(tmp_path, to_yaml(run))
    for one in (run, again):
        assert one.data.train[0].config.prefix == text
        assert one.tokenizer.config.user_symbols == [text]
    assert to_yaml(again) == to_yaml(run)


def laughs(levels=12):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(levels):
        lines.append(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(("text", "said"), [
    (laughs(), "more than 100,000 values"),
    ("data: &a [*a]", "values are nested more than 50 deep"),
    ("data: &a {train: *a}", "values are nested more than 50 deep"),
    (f"seed: {'[' * 3000}{']' * 3000}", "values are nested more than 50 deep"),
    (f"seed: {'[' * 60}{']' * 60}", "values are nested more than 50 deep"),
    ("run_dir: 'runs/${'", "run.yaml:1: 'runs/${' cannot be resolved"),
    ("run_dir: '${run_dir}x'", "run.yaml:1: '${run_dir}x' cannot be resolved: Recursive"),
    ("seed: ${seed}", "run.yaml:1: '${seed}' cannot be resolved: Recursive"),
    ("? [a, b]\n: 1", "run.yaml:1: a key must be a text"),
    ('run_dir: "\\ud800"', "run.yaml:1: half of a surrogate pair"),
])  # fmt: skip
def test_hostile_files_are_told(tmp_path, text, said):
    assert said in error_of(tmp_path, text)


def test_anchors_serve_where_they_end(tmp_path):
    run = load(tmp_path, "data: {train: &a [{source: x, target: y}], valid: *a}")
    assert run.data.valid[0].config.source == "x"
