"""Runs made of Sockeye's models, against what Sockeye itself found (expected.json, see originals.py)."""

import json
from pathlib import Path

import originals
import pytest
import torch

import mtplug
from mtplug import testing
from mtplug.cli import import_run

EXPECTED = json.loads(Path(originals.__file__).with_name("expected.json").read_text("utf-8"))
LANGUAGES = ["source_lang=xx", "target_lang=yy"]


def read(folder, output, *settings):
    line = ["sockeye", str(folder), *LANGUAGES, *settings, "--output", str(output)]
    assert import_run.main([*line, "--debug"]) == 0
    return mtplug.load(output, device="cpu")


@pytest.fixture(scope="module", params=originals.KINDS)
def made(request, tmp_path_factory):
    """(kind, the run loaded)."""
    there = tmp_path_factory.mktemp(request.param)
    originals.write(request.param, there / "original")
    return request.param, read(there / "original", there / "run")


def test_a_model_of_sockeye_scores_as_there(made):
    """Pre- and post-norm, gated layers, fixed and learnt positions, tables tied in each way."""
    kind, ours = made
    scored = ours.score(originals.SOURCES, originals.TARGETS)
    for row, found in zip(EXPECTED[kind], scored, strict=True):
        assert found.token_scores == pytest.approx(row["scores"], abs=1e-4)


def test_it_translates_as_there(made):
    kind, ours = made
    found = ours.nbest(originals.SOURCES, beam=1, max_ratio=0, max_extra=9)
    for (best, *_), row in zip(found, EXPECTED[kind], strict=True):
        greedy = [token for token in row["greedy"] if token != "</s>"]
        assert best.tokens[:8] == greedy


def test_ctranslate2_scores_with_it(made, tmp_path):
    """The start token, the bias of the logits and the order of the sinusoids reach it."""
    exporter = pytest.importorskip("mtplug_ctranslate2.exporter")
    _, ours = made
    exported = exporter.CTranslate2Exporter(exporter.CTranslate2Config())
    assert not exported.why_not(ours.model, ours.task)
    exported.export(ours, tmp_path / "ct2")
    pairs = originals.SOURCES, originals.TARGETS
    ids = (
        t.encode(x)
        for t, x in zip(
            (ours.task.source_tokenizer, ours.task.target_tokenizer), pairs, strict=True
        )
    )
    found = exported.engine(tmp_path / "ct2", "cpu").score(*ids)
    for wanted, row in zip(ours.score(*pairs), found, strict=True):
        assert row == pytest.approx(wanted.token_scores, abs=2e-5)


def test_a_beam_is_the_same_alone_and_in_a_batch(made):
    """A start token that is not `</s>` must reach each step of a search."""
    _, ours = made
    together = ours.nbest(originals.SOURCES, beam=3)
    for text, (best, *_) in zip(originals.SOURCES, together, strict=True):
        (alone, *_) = ours.nbest([text], beam=3)[0]
        assert alone.tokens == best.tokens and alone.score == pytest.approx(best.score, abs=1e-5)


def test_subwords_cut_the_text(tmp_path):
    originals.write("post", tmp_path / "original")
    for side, merges in (("source", "k a</w>\n"), ("target", "s i\nsi x</w>\n")):
        (tmp_path / side).write_text(f"#version: 0.2\n{merges}")
    files = [f"{side}_subwords={tmp_path / side}" for side in ("source", "target")]
    ours = read(tmp_path / "original", tmp_path / "run", *files)
    task = ours.task
    assert task.source_tokenizer.cut("ka lo") == ["ka", "l@@", "o"]
    assert task.target_tokenizer.decode(task.target_tokenizer.encode(["six"])) == ["six"]


def test_it_is_fine_tuned_whole_and_by_lora(tmp_path):
    """The pairs are learnt: their loss falls."""
    base = tmp_path / "base"
    originals.write("pre", tmp_path / "original")
    read(tmp_path / "original", base)
    texts = [*zip(originals.SOURCES, originals.TARGETS, strict=True)] * 5
    common = ("training.max_tokens=100", "optimizer.lr=0.01")
    for name, settings in (("whole", ()), ("lora", ("peft.name=lora",))):
        _, losses = testing.finetune(base, tmp_path / name, texts, *common, *settings)
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "old, new, said",
    [
        (
            "decoder_type: transformer",
            "decoder_type: ssru_transformer",
            "decoder_type is ssru_transformer",
        ),
        ("num_source_factors: 1", "num_source_factors: 2", "has source factors"),
        ("num_target_factors: 1", "num_target_factors: 2", "has target factors"),
        ("lhuc: false", "lhuc: true", "LHUC is on"),
        (
            "neural_vocab_selection: null",
            "neural_vocab_selection: logit_max",
            "selects its vocabulary",
        ),
        ("dtype: float32", "dtype: int8", "give the one before sockeye-quantize"),
        (
            "preprocess_sequence: 'n'",
            "preprocess_sequence: 'nd'",
            "'nd' with postprocess_sequence 'dr' is not read",
        ),
        ("act_type: relu", "act_type: softplus", "act_type softplus is none of ours"),
        ("use_glu: false", "use_glu: true", "act_type relu with use_glu is none of ours"),
        (
            "positional_embedding_type: fixed",
            "positional_embedding_type: none",
            "neither fixed nor learned",
        ),
        ("num_layers: 2", "num_layers: 3", "the model has no encoder.layers.2."),
        ("num_layers: 2", "num_layers: 1", "layers.1."),
        ("config_encoder:", "config_other:", "no configuration of Sockeye 3"),
    ],
)
def test_what_it_cannot_be_is_told_in_one_line(old, new, said, tmp_path, capsys):
    folder = tmp_path / "original"
    originals.write("pre", folder)
    text = (folder / "config").read_text()
    assert old in text
    (folder / "config").write_text(text.replace(old, new))
    line = ["sockeye", str(folder), *LANGUAGES, "--output", str(tmp_path / "run")]
    assert import_run.main(line) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_told(tmp_path, capsys):
    folder = tmp_path / "original"
    originals.write("pre", folder)
    line = ["sockeye", str(folder), "--output", str(tmp_path / "run")]
    assert import_run.main(line) == 2
    assert "source_lang is missing" in capsys.readouterr().err
    vocabulary = folder / "vocab.trg.0.json"
    ids = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps({**ids, "more": len(ids)}))
    assert import_run.main([*line, *LANGUAGES]) == 2
    assert "it is another model's" in capsys.readouterr().err
    vocabulary.write_text(json.dumps(dict.fromkeys(ids, 0)))
    assert import_run.main([*line, *LANGUAGES]) == 2
    assert "no vocabulary of Sockeye's" in capsys.readouterr().err
    (folder / "params.best").unlink()
    assert import_run.main([*line, *LANGUAGES]) == 2
    assert "give a file params.NUMBER" in capsys.readouterr().err


def test_the_length_task_and_traced_modules_are_left_out(tmp_path):
    """Earlier versions saved traced modules twice; the length ratio only serves a brevity penalty."""
    originals.write("pre", tmp_path / "original")
    file = tmp_path / "original/params.best"
    state = torch.load(file)
    state |= {"length_ratio.layers.0.weight": torch.ones(1, 16), "traced_encoder.x": torch.ones(1)}
    torch.save(state, file)
    (scored, *_) = read(tmp_path / "original", tmp_path / "run").score(
        originals.SOURCES, originals.TARGETS
    )
    assert scored.token_scores == pytest.approx(EXPECTED["pre"][0]["scores"], abs=1e-4)


def test_architecture_keeps_the_contract():
    testing.check_architecture("sockeye", *testing.material.TINY_TRANSFORMER, "start=4",
                               "position.name=sockeye_sinusoidal")  # fmt: skip


def test_a_start_that_the_vocabulary_does_not_have_is_refused(tmp_path):
    """As of a run whose settings were taken with another vocabulary: it was an IndexError in the first update."""
    with pytest.raises(mtplug.UserError, match=r"architecture\.start: 31 is no id .* 23 tokens"):
        testing.train(tmp_path, "architecture={name: sockeye, dim: 16, heads: 2, start: 31}")
