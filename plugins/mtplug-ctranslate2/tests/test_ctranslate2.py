"""Exported models against the models themselves, in scores, translations and refusals.

The truth is mtplug's own forced decoding and search; the exporter checks itself by the former too.
"""

import json
import shutil
from unittest import mock

import ctranslate2
import pytest
import torch
from mtplug_ctranslate2 import exporter, spec
from mtplug_ctranslate2.exporter import CTranslate2Config, CTranslate2Exporter

import mtplug
from mtplug import testing
from mtplug.cli import export, train, translate
from mtplug.config import component_from_overrides
from mtplug.errors import UserError
from mtplug.exporting.marian_model import Marian
from mtplug.testing.material import TINY_TRANSFORMER, Words, WordsTask
from mtplug.translator import Translator


def untrained(*settings: str, name: str = "transformer") -> Translator:
    """A small random model whose output weights are large enough to prefer some words."""
    torch.manual_seed(3)
    task = WordsTask()
    if "tie_embeddings=none" in settings:
        task.target_tokenizer = Words()
    selected = component_from_overrides("architectures", name, [*TINY_TRANSFORMER, *settings])
    model = selected.build(task)
    for key, weights in model.named_parameters():
        if weights.dim() == 1 or "position" in key:  # biases start at 0, norms at 1
            torch.nn.init.normal_(weights, std=0.3)
    search = component_from_overrides("search_strategies", "beam", ["beam=3"]).build()
    return Translator(model.eval(), task, search)


SHAPES = {
    "post": ("norm=post",),
    "pre, gelu": ("norm=pre", "activation=gelu"),
    "separate tables, swish": ("norm=pre", "activation=swish", "tie_embeddings=none"),
    "pre, rms, swiglu": ("norm=pre", "norm_type=rms", "activation=swiglu"),
    "post, rms, geglu": ("norm=post", "norm_type=rms", "activation=geglu"),
    "pre, rms, geglu_tanh": ("norm=pre", "norm_type=rms", "activation=geglu_tanh"),
    "deeper encoder": ("encoder_layers=3", "decoder_layers=1", "tie_embeddings=decoder"),
    "learned": ("position={name: learned, max_positions: 64}",),
    "shaw": ("position={name: shaw, max_distance: 3}", "norm=pre"),
    "t5_bias": ("position={name: t5_bias, buckets: 8, max_distance: 12}",),
}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_scores_are_those_of_the_model(settings, tmp_path):
    translator, made = untrained(*settings), CTranslate2Exporter(CTranslate2Config())
    made.export(translator, tmp_path / "out")
    sources, targets = (
        ["ka lo mi nu pe ra so", "ti"],
        ["one two", "ten nine eight seven six five four"],
    )
    wanted = [t.token_scores for t in translator.score(sources, targets)]
    ids = Words().encode
    found = made.engine(tmp_path / "out", "cpu").score(ids(sources), ids(targets))
    assert [len(row) for row in found] == [3, 8]
    for ours, theirs in zip(wanted, found, strict=True):
        assert theirs == pytest.approx(ours, abs=2e-5)


class Own(Marian):
    """An architecture of a plugin; its `output_bias` and `start_embedding` are Marian's."""


def test_a_model_that_says_so_begins_with_an_embedding_of_its_own_and_has_a_bias(
    tmp_path, monkeypatch
):
    translator, made = untrained(name="marian"), CTranslate2Exporter(CTranslate2Config())
    _scores_agree(translator, made, tmp_path / "marian")
    translator.model.__class__ = Own
    assert "not Own" in made.why_not(translator.model, translator.task)
    monkeypatch.setattr(Own, "ctranslate2", True, raising=False)
    monkeypatch.setattr(Own, "source_end", False, raising=False)
    with pytest.raises(UserError, match="scores random sentences otherwise"):  # it does see `</s>`
        made.export(translator, tmp_path / "out")
    monkeypatch.setattr(Own, "source_end", True)
    _scores_agree(translator, made, tmp_path / "out")


def _scores_agree(translator, made, out):
    made.export(translator, out)
    (wanted,) = translator.score(["ka lo mi"], ["one two three"])
    ids = Words().encode
    (found,) = made.engine(out, "cpu").score(ids(["ka lo mi"]), ids(["one two three"]))
    assert found == pytest.approx(wanted.token_scores, abs=2e-5)


def test_it_keeps_its_contract(mtplug_run):
    testing.check_exporter("ctranslate2", run=mtplug_run)


def test_quantizing_leaves_the_model_as_it_was(tmp_path):
    translator = untrained()
    before = {name: t.clone() for name, t in translator.model.state_dict().items()}
    CTranslate2Exporter(CTranslate2Config("int8")).export(translator, tmp_path / "out")
    for name, tensor in translator.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_translations_nbest_and_scores_are_those_of_our_search(mtplug_run, tmp_path):
    translator = mtplug.load(mtplug_run, device="cpu")
    texts = [source for source, _ in testing.pairs(30, seed=7)]
    made = CTranslate2Exporter(CTranslate2Config())
    made.export(translator, tmp_path / "out")
    engine = made.engine(tmp_path / "out", "cpu")
    for settings in (
        {"beam": 4, "nbest": 3},
        {"beam": 4, "nbest": 2, "length_norm": "gnmt", "length_penalty": 0.6},
        {"beam": 1},
        {"beam": 2, "max_ratio": 0.5, "max_extra": 0},  # every translation is cut
    ):
        translator.engine = None
        ours = translator.nbest(texts, **settings)
        translator.engine = engine
        theirs = translator.nbest(texts, **settings)
        same = 0
        for a, b in zip(ours, theirs, strict=True):
            assert len(a) == len(b)
            if a[0].tokens == b[0].tokens:
                same += 1
                assert b[0].score == pytest.approx(a[0].score, abs=1e-4)
                assert b[0].token_scores == pytest.approx(a[0].token_scores, abs=1e-4)
                assert a[0].finished == b[0].finished
        assert same >= 29, settings
    assert translator.translate(texts, beam=2, max_ratio=0.5, max_extra=0) == [
        b[0].text for b in theirs
    ]


def test_padding_is_no_token_of_a_translation(tmp_path):
    translator = untrained()
    with torch.no_grad():
        table = translator.model.output.weight
        (best,) = translator.nbest(["ka lo mi"])
        table[0] = table[best[0].parts[0][0]] * 1.1  # padding is the likeliest first token
    made = CTranslate2Exporter(CTranslate2Config())
    made.export(translator, tmp_path / "out")
    engine = made.engine(tmp_path / "out", "cpu")
    sources = Words().encode([source for source, _ in testing.pairs(20, seed=7)])
    raw = engine.search(sources, 3, 12, [])
    assert any(0 in h.tokens for row in raw for h in row)
    translator.engine = engine
    texts = Words().decode(sources)
    found = translator.nbest(texts, nbest=3)
    assert all("<pad>" not in t.tokens for row in found for t in row)
    truth = translator.score(texts, [row[0].text for row in found])
    for row, forced in zip(found, truth, strict=True):
        if row[0].finished and row[0].tokens == forced.tokens:
            assert row[0].score == pytest.approx(forced.score, abs=1e-4)


def test_a_wrong_export_is_not_handed_out(tmp_path, monkeypatch):
    build = spec.build

    def swapped(model, positions):
        made = build(model, positions)
        layer = made.decoder.layer[0].ffn
        layer.layer_norm.gamma = layer.layer_norm.gamma[::-1].copy()
        return made

    monkeypatch.setattr(exporter.spec, "build", swapped)
    with pytest.raises(mtplug.UserError, match="scores random sentences otherwise"):
        CTranslate2Exporter(CTranslate2Config()).export(untrained(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rope", "alibi", "transformer_xl", "deberta"])
def test_positions_that_ctranslate2_lacks_are_refused(name, tmp_path):
    translator = untrained(f"position={{name: {name}}}")
    with pytest.raises(mtplug.UserError, match=f"no {name} positions .*=sinusoidal, learned, shaw"):
        CTranslate2Exporter(CTranslate2Config()).export(translator, tmp_path / "out")


def test_layers_that_ctranslate2_lacks_are_refused():
    model = untrained().model
    model.encoder[0].ffn.body = torch.nn.Sequential(model.encoder[0].ffn.body)
    assert "encoder.0.ffn.body is a Sequential" in spec.why_not(model)
    theirs = type("Linear", (torch.nn.Module,), {"__module__": "peft.loha"})  # said to be a Linear
    model.encoder[0].ffn.body = theirs()
    assert "encoder.0.ffn.body is a peft.loha.Linear, which" in spec.why_not(model)
    assert "architectures transformer and marian, not Linear" in spec.why_not(torch.nn.Linear(2, 2))
    assert "no shared heads of keys" in spec.why_not(untrained("kv_heads=1").model)
    assert "share out the model size" in spec.why_not(untrained("head_dim=24").model)


def test_search_settings_that_ctranslate2_lacks_are_refused(mtplug_run, tmp_path):
    translator = mtplug.load(mtplug_run, device="cpu")
    made = CTranslate2Exporter(CTranslate2Config())
    made.export(translator, tmp_path / "out")
    translator.engine = made.engine(tmp_path / "out", "cpu")
    terms = tmp_path / "terms.tsv"
    terms.write_text("lo\tone\n")
    for setting in (
        {"no_repeat_ngram": 3},
        {"coverage_penalty": 0.2},
        {"stop": "first"},
        {"shortlist": 50},
        {"terminology": str(terms)},  # of which this text has none
    ):
        ((key, value),) = setting.items()
        with pytest.raises(mtplug.UserError, match=f"search.{key}={value}"):
            translator.translate(["ka"], **setting)
    with pytest.raises(mtplug.UserError, match="translate without --backend"):
        translator.translate(["ka"], forbidden=["one"])
    with pytest.raises(mtplug.UserError, match="cannot open"):
        made.engine(tmp_path, "cpu")


def test_commands_export_and_translate(mtplug_run, tmp_path, capsys):
    run, out = shutil.copytree(mtplug_run, tmp_path / "run", symlinks=True), tmp_path / "out"
    arguments = [str(run), "--format", "ctranslate2", "--output", str(out)]
    assert export.main([*arguments, "--quantization", "int8", "--debug"]) == 0
    small = (out / "model.bin").stat().st_size
    assert {"config.json", "shared_vocabulary.json", "joint.model"} <= {
        p.name for p in out.iterdir()
    }
    assert export.main(arguments) == 0
    assert small < (out / "model.bin").stat().st_size
    assert export.main([*arguments, "--quantization", "int3"]) == 2
    assert "'int3' is none of float32, int8" in capsys.readouterr().err

    source = tmp_path / "in.txt"
    source.write_text("ka lo\n\nmi nu pe\n")
    line = [str(run), "--input", str(source), "--backend", "ctranslate2"]
    for _ in range(2):
        assert translate.main([*line, "--quantization", "int8", "--format", "jsonl"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [r["text"] for r in rows] == mtplug.load(mtplug_run).translate(
            ["ka lo", "", "mi nu pe"]
        )
        assert len(rows[0]["token_scores"]) == len(rows[0]["tokens"]) + 1
    assert translate.main(line) == 0
    assert len(list((run / "exports").iterdir())) == 2  # one for each quantization
    assert translate.main([*line, "--ensemble", str(run)]) == 2
    assert "not an ensemble" in capsys.readouterr().err
    assert translate.main([*line, "--precision", "bf16"]) == 2  # weights were exported in it
    told = "precision bf16: --backend ctranslate2 computes in what its quantization says"
    assert told in capsys.readouterr().err


def test_the_precision_that_a_device_would_choose_is_not_that_of_the_export(mtplug_run, tmp_path):
    run = shutil.copytree(mtplug_run, tmp_path / "run", symlinks=True)
    with mock.patch("mtplug.training.precision.multiplies_bf16", lambda device: True):
        made = mtplug.load(run, device="cpu", backend="ctranslate2", precision="auto")
    assert next(made.model.parameters()).dtype == torch.bfloat16
    assert made.translate(["ka lo"]) == mtplug.load(mtplug_run).translate(["ka lo"])
    mtplug.load(run, device="cpu", backend="ctranslate2")
    assert len(list((run / "exports").iterdir())) == 1


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_training_says_at_once_what_cannot_be_exported(position, mtplug_corpus, tmp_path, capsys):
    line = [
        str(mtplug_corpus / "run.yaml"), f"data.root={mtplug_corpus}", f"run_dir={tmp_path / 'run'}",
        "checkpoint.export_check=ctranslate2",
    ]  # fmt: skip
    assert train.main([*line, f"architecture.position.name={position}"]) == 2
    error = capsys.readouterr().err
    assert f"checkpoint.export_check: ctranslate2: CTranslate2 has no {position}" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_benchmark_compares(mtplug_run, mtplug_corpus):
    settings = [f"run={mtplug_run}", f"input={mtplug_corpus / 'test.xx'}", "rounds=1", "beams=[2]",
                f"reference={mtplug_corpus / 'test.en'}"]  # fmt: skip
    testing.check_benchmark("ctranslate2", *settings)
    suite = component_from_overrides("benchmarks", "ctranslate2", settings).build()
    rows = suite.run()
    assert [r["side"] for r in rows] == ["mtplug", "ctranslate2 float32", "ctranslate2 int8"]
    assert rows[1]["equal"] == 1 and rows[1]["bleu"] == rows[0]["bleu"] > 20
    assert all(0 < r["least"] <= r["sentences/s"] <= r["most"] for r in rows)
    assert suite.conditions()["ctranslate2"] == ctranslate2.__version__


def test_benchmark_refuses_a_reference_of_another_number_of_lines(tmp_path):
    for name, lines in (("in", "a\nb\n"), ("out", "a\n")):
        (tmp_path / name).write_text(lines)
    settings = ["run=nowhere", f"input={tmp_path / 'in'}", f"reference={tmp_path / 'out'}"]
    suite = component_from_overrides("benchmarks", "ctranslate2", settings).build()
    with pytest.raises(mtplug.UserError, match="out has 1 lines"):
        suite.run()
