"""Exporters of plugins: the commands, engines that search in the model's place, runs that are read."""

import errno
import json
import re
from pathlib import Path

import pytest

import mtplug
from mtplug import plugins
from mtplug.cli import export, import_run, train, translate
from mtplug.config.build import component_from_overrides
from mtplug.exporting import reason_against
from mtplug.testing.material import TINY_TRANSFORMER, WordsTask
from tests import tiny

PLUGIN = """
import json, shutil
from dataclasses import dataclass
from pathlib import Path
import mtplug
from mtplug.config.build import load_resolved, to_plain
from mtplug.exporting import Engine, Imported
from mtplug.search import Hypothesis, SearchStrategy
from mtplug.translator import load

@dataclass
class Config:
    '''A copy that answers everything with a fixed word.'''
    word: str = "▁ten"

class Fixed(Engine, SearchStrategy):
    def __init__(self, answer):
        self.answer = answer

    def strategy(self, search, token_scores):
        self.config = search.config
        return self

    def __call__(self, model, source_tokens, source_lengths):
        return [[Hypothesis([self.answer], -0.5, [-0.25, -0.25])] for _ in source_tokens]

class Copy:
    def __init__(self, config):
        self.config = config

    def export(self, translator, path):
        path.mkdir(parents=True, exist_ok=True)
        tokens = translator.task.target_tokenizer.tokens(list(range(len(translator.task.target_tokenizer))))
        (path / "answer").write_text(str(tokens.index(self.config.word)))
        with (Path(__file__).parent / "exports.log").open("a") as log:
            log.write(f"{path.name}\\n")

    def engine(self, path, device):
        return Fixed(int((path / "answer").read_text()))

    def read(self, source):
        other = load(source, device="cpu")
        run = to_plain(load_resolved(source / "config.yaml"))
        settings = {k: run[k] for k in ("task", "tokenizer", "architecture")}
        return Imported(settings, {"joint": other.task.source_tokenizer}, dict(other.model.named_parameters()))

class Never:
    def __init__(self, config):
        pass

    def why_not(self, model, task):
        return f"it has {len(task.source_tokenizer)} words"

    def export(self, translator, path):
        raise AssertionError

class Reader:
    def __init__(self, config):
        pass

    def read(self, source):
        raise AssertionError

@dataclass
class Needy:
    '''Has no default.'''
    word: str

@mtplug.hookimpl
def register_exporters(register):
    register("needy", Copy, Needy)
    register("reader", Reader)
    register("copy", Copy, Config)
    register("never", Never)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Path:
    file = tmp_path / "copying.py"
    file.write_text(PLUGIN)
    monkeypatch.setattr(plugins, "_current", None)  # commands make their own, and remember it
    monkeypatch.setenv("MTPLUG_PLUGIN_FILES", "")
    return file


def test_export_writes_and_says_what_it_cannot(tiny_run, plugin, tmp_path, capsys):
    run, line = str(tiny_run), ["--plugin", str(plugin)]
    out = tmp_path / "deep" / "out"
    assert export.main([run, "--format", "copy", "--output", str(out), "word=▁one", *line]) == 0
    assert (out / "answer").is_file()
    record = json.loads((out / "mtplug_export.json").read_text())
    last = (tiny_run / "checkpoints" / "best").resolve().name
    assert (record["run"], record["checkpoint"]) == (str(tiny_run.resolve()), last)
    assert record["settings"]["word"] == "▁one"
    assert export.main([run, "--format", "copy", "--output", str(out), *line]) == 0  # made anew
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").touch()
    for arguments, message in (
        (
            (run, "--format", "onnx"),
            "--format onnx: no such format; there are copy, marian, needy, never, others",
        ),
        (
            (run, "--format", "reader"),
            "--format reader: this format can only be read; formats that can be written: copy, marian, needy, never\n",
        ),
        ((run, "--format", "never"), "--format never: it has 23 words"),
        (
            (run, "--format", "copy", "--output", str(tmp_path / "thesis")),
            "that folder is no export",
        ),
        ((run, "--format", "copy", "--quantization", "int8"), "unknown key 'quantization'"),
        ((run, "--format", "copy", "--checkpoint", "step-7"), "no checkpoint 'step-7'"),
        ((str(tmp_path), "--format", "copy"), "is no run"),
    ):
        assert export.main([*arguments, *line]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_backend_searches_with_what_was_exported_once(tiny_run, plugin, tmp_path, capsys):
    source = tmp_path / "in.txt"
    source.write_text("ka lo\n\nmi\n")
    line = [str(tiny_run), "--input", str(source), "--plugin", str(plugin), "--backend"]
    log = tmp_path / "exports.log"
    for _ in range(2):
        assert translate.main([*line, "copy"]) == 0
        assert capsys.readouterr().out == "ten\n\nten\n"
    assert len(log.read_text().splitlines()) == 1
    assert translate.main([*line, "copy", "--checkpoint", "last", "--format", "jsonl"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["score"] == -0.5 and row["alignment"]  # the model's own attention
    for arguments, message in (
        (["never"], "this format can only be written; formats that translate: copy, needy\n"),
        (["reader"], "this format can only be read; formats that translate: copy, needy\n"),
        (["copy", "--checkpoint", "best,last"], "one checkpoint at a time"),
        (["copy", "search.forbidden=[ten]"], "translate without --backend"),
        (["nothing"], "--backend nothing: no such format"),
    ):
        assert translate.main([*line, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert translate.main([str(tiny_run), "--quantization", "int8"]) == 2


def test_export_of_a_run_that_cannot_be_written_goes_to_the_cache(
    tiny_run, plugin, tmp_path, monkeypatch
):
    from mtplug.exporting import backend

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = backend._write(
        [tiny_run / "config.yaml", tmp_path / "cache"], "x", lambda to: (to / "f").touch()
    )
    assert made == tmp_path / "cache" / "x" and (made / "f").is_file()
    with pytest.raises(mtplug.UserError, match="no place"):
        backend._write([tiny_run / "config.yaml"], "x", lambda to: None)


@pytest.mark.parametrize("given", ["never", "[copy, never]"])
def test_training_asks_the_formats_before_it_reads_data(given, plugin, tmp_path, capsys):
    config = tiny.write_corpus(tmp_path)
    line = [
        str(config),
        f"run_dir={tmp_path / 'run'}",
        f"data.root={tmp_path}",
        "--plugin",
        str(plugin),
    ]
    for more in ([], ["--dry-run"]):
        assert train.main([*line, f"checkpoint.export_check={given}", *more]) == 2
        error = capsys.readouterr().err
        assert "checkpoint.export_check: never: it has 23 words" in error and error.count("\n") == 1
    assert train.main([*line, "checkpoint.export_check=reader"]) == 2
    assert (
        "checkpoint.export_check: reader: this format can only be read" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
    assert train.main([*line, "checkpoint.export_check=nothing"]) == 2
    assert "nothing: no such format; there are copy" in capsys.readouterr().err
    few = ["training.max_updates=1", "data.test=null", "data.valid=null"]
    assert train.main([*line, "checkpoint.export_check=copy", *few]) == 0


@pytest.mark.parametrize(
    ("peft", "told"),
    [("lora", ""), ("bitfit", ""), ("adapter", "no format takes what peft.name=adapter trains: Bottleneck cannot")],
)  # fmt: skip
def test_of_a_method_the_merged_model_is_asked_for(plugin, tiny_run, tmp_path, capsys, peft, told):
    """That is what is exported. A run with LoRA was refused with the advice to merge it, which was not yet trained."""
    here = (
        f"training.finetune_from={tiny_run}",
        f"peft.name={peft}",
        "checkpoint.export_check=copy",
    )
    config = str(tiny.write_corpus(tmp_path))
    line = [config, f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path}", *here]
    line += ["--plugin", str(plugin)]
    few = ["training.max_updates=1", "data.test=null", "data.valid=null"]
    for more in (["--dry-run"], few):
        assert train.main([*line, *more]) == (2 if told else 0)
        assert told in capsys.readouterr().err
    assert train.main([*line, *few, "checkpoint.export_check=never"]) == 2
    assert (told or "never: it has 23 words") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("lora", "merge it first"),
        ("prefix_tuning", r"an adapter that cannot be merged \(\w*Prefix"),
        ("adapter", r"an adapter that cannot be merged \(\w"),
    ],
)
def test_an_adapter_is_to_be_merged_where_it_can_be(method, told):
    """Who was told to merge one of prefixes was then told that it cannot be merged."""
    model = component_from_overrides("architectures", "transformer", [*TINY_TRANSFORMER])
    adapted = component_from_overrides("peft_methods", method, []).build()
    assert re.search(told, reason_against(None, adapted.apply(model.build(WordsTask())), None))


def test_run_that_was_read_translates(tiny_run, plugin, tmp_path, capsys, monkeypatch):
    target, line = tmp_path / "read", ["--plugin", str(plugin)]

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:  # it left a folder that was "there already" the next time
        patch.setattr("mtplug.training.checkpoints.save_tensors", full)
        assert import_run.main(["copy", str(tiny_run), "--output", str(target), *line]) == 1
    capsys.readouterr()
    assert import_run.main(["copy", str(tiny_run), "--output", str(target), *line]) == 0
    texts = ["ka lo mi", "nu"]
    assert mtplug.load(target).translate(texts) == mtplug.load(tiny_run).translate(texts)
    for arguments, message in (
        (["copy", str(tiny_run), "--output", str(target)], "is there already"),
        (
            ["never", str(tiny_run), "--output", "x"],
            "format never: this format can only be written",
        ),
        (
            ["never", str(tiny_run), "--output", "x"],
            "can be read: copy, fairseq, marian, marian_npz, needy, reader\n",
        ),
        (
            ["onnx", str(tiny_run), "--output", "x"],
            "there are copy, fairseq, marian, marian_npz, needy, reader, o",
        ),
        (["copy", str(tmp_path / "no"), "--output", "x"], "no such file or folder"),
    ):
        assert import_run.main([*arguments, *line]) == 2
        assert message in capsys.readouterr().err
