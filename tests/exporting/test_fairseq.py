"""Runs made of fairseq's models, against what fairseq itself found: see tests/golden/make_fairseq.py."""

import argparse
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mtplug
from mtplug.cli import export, import_run
from mtplug.exporting.fairseq import FairseqFormat, FairseqImporter

GOLDEN = Path(__file__).parents[1] / "golden" / "fairseq"
SUBWORDS = {
    "codes": [f"source_subwords={GOLDEN}/codes/codes"],
    "sentencepiece": [f"{side}_subwords={GOLDEN}/sentencepiece/{lang}.model"
                      for side, lang in (("source", "xx"), ("target", "en"))],
}  # fmt: skip
LANGUAGES = ["source_lang=xx", "target_lang=en"]


def read(source, output, *settings):
    line = ["fairseq", str(source), *LANGUAGES, *settings, "--output", str(output)]
    assert import_run.main([*line, "--debug"]) == 0
    return mtplug.load(output, device="cpu")


def expected(kind):
    return json.loads((GOLDEN / kind / "expected.json").read_text())


@pytest.mark.parametrize("kind", ["codes", "sentencepiece"])
def test_a_model_of_fairseq_cuts_scores_and_translates_as_there(kind, tmp_path):
    """Post-norm with sinusoids and one table, and pre-norm with learnt positions, gelu and two dictionaries."""
    ours = read(GOLDEN / kind, tmp_path / "run", *SUBWORDS[kind])
    rows = expected(kind)
    sources = [row["source"] for row in rows]
    cut = ours.task.source_tokenizer.encode(sources)
    assert [ours.task.source_tokenizer.tokens(ids) for ids in cut] == [r["pieces"] for r in rows]
    target = ours.task.target_tokenizer
    texts = target.decode([[target.ids[piece] for piece in row["translation"]] for row in rows])
    same = 0
    for row, scored in zip(rows, ours.score(sources, texts), strict=True):
        if scored.tokens == row["translation"]:  # else the same text is cut in another way
            same += 1
            assert scored.token_scores == pytest.approx(row["scores"], abs=1e-4)
    assert same >= len(rows) / 2
    found = ours.nbest(sources, beam=1, max_ratio=0, max_extra=10)
    short = [
        (best, row)
        for (best, *_), row in zip(found, rows, strict=True)
        if best.tokens and len(row["translation"]) < 9  # fairseq finds no empty ones
    ]
    assert len(short) > len(rows) / 2
    assert [best.tokens for best, _ in short] == [row["translation"] for _, row in short]


def test_without_subwords_text_is_what_the_dictionary_has(tmp_path):
    ours = read(GOLDEN / "codes", tmp_path / "run")
    row = expected("codes")[0]
    text = " ".join(row["pieces"])
    assert ours.task.source_tokenizer.decode(ours.task.source_tokenizer.encode([text])) == [text]
    (scored,) = ours.score([text], [" ".join(row["translation"])])
    assert scored.token_scores == pytest.approx(row["scores"], abs=1e-4)


def test_a_model_of_fairseq_is_a_base_and_goes_on_training(tmp_path):
    from mtplug.cli.train import main
    from mtplug.testing.tiny import write_corpus

    base = tmp_path / "base"
    read(GOLDEN / "codes", base, *SUBWORDS["codes"])
    write_corpus(tmp_path)
    settings = (f"training.finetune_from={base}", f"run_dir={tmp_path}/run", f"data.root={tmp_path}", "optimizer.lr=3e-3",
                "training.max_updates=60", "data.test=null", "validation.every_updates=30")  # fmt: skip
    groups = ("task", "tokenizer", "architecture")
    text = (tmp_path / "run.yaml").read_text()
    kept = [part for part in text.split("\n") if not part.startswith(groups)]
    (tmp_path / "tune.yaml").write_text("\n".join(kept))
    assert main([str(tmp_path / "tune.yaml"), *settings, "--debug"]) == 0
    sides = [(tmp_path / f"valid.{lang}").read_text().splitlines() for lang in ("xx", "en")]
    losses = []
    for run in (base, tmp_path / "run"):
        scored = mtplug.load(run, device="cpu").score(*sides)
        losses.append(
            -sum(sum(s.token_scores) for s in scored) / sum(len(s.token_scores) for s in scored)
        )
    assert losses[1] < losses[0] - 0.2


def test_models_of_earlier_versions(tmp_path):
    """Arguments in `args`, and one matrix for queries, keys and values."""
    state = torch.load(GOLDEN / "sentencepiece/checkpoint_best.pt", weights_only=False)
    args = argparse.Namespace(**{**vars(state["cfg"]["model"]), **state["cfg"]["task"]})
    args.source_lang, args.target_lang = "xx", "en"
    model = state["model"]
    for name in [n for n in model if n.endswith("self_attn.q_proj.weight")]:
        at = name.removesuffix("q_proj.weight")
        for kind in ("weight", "bias"):
            parts = [model.pop(f"{at}{p}_proj.{kind}") for p in "qkv"]
            model[f"{at}in_proj_{kind}"] = torch.cat(parts)
    for side in ("xx", "en"):
        shutil.copy(GOLDEN / "sentencepiece" / f"dict.{side}.txt", tmp_path)
    torch.save({"args": args, "model": model}, tmp_path / "model.pt")
    old = FairseqImporter(FairseqFormat()).read(tmp_path)
    new = FairseqImporter(FairseqFormat(source_lang="xx", target_lang="en")).read(
        GOLDEN / "sentencepiece"
    )
    assert old.settings == new.settings and old.weights.keys() == new.weights.keys()
    assert all(torch.equal(old.weights[name], new.weights[name]) for name in new.weights)


def test_settings_that_are_nested_are_read_and_leave_room_for_the_end(tmp_path):
    """As fairseq-hydra-train writes them."""
    state = torch.load(GOLDEN / "sentencepiece/checkpoint_best.pt", weights_only=False)
    flat = vars(state["cfg"]["model"])
    model = {
        name: value for name, value in flat.items() if not name.startswith(("encoder_", "decoder_"))
    }
    for part in ("encoder", "decoder"):
        own = {name: value for name, value in flat.items() if name.startswith(f"{part}_")}
        model[part] = {name.removeprefix(f"{part}_"): value for name, value in own.items()}
    state["cfg"]["model"] = model
    for side in ("xx", "en"):
        shutil.copy(GOLDEN / "sentencepiece" / f"dict.{side}.txt", tmp_path)
    torch.save(state, tmp_path / "checkpoint_best.pt")
    form = FairseqFormat(source_lang="xx", target_lang="en")
    nested = FairseqImporter(form).read(tmp_path)
    assert nested.settings == FairseqImporter(form).read(GOLDEN / "sentencepiece").settings
    positions = nested.settings["architecture"]["position"]["max_positions"]
    assert nested.settings["data"]["max_length"] == positions - 1


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_numbers_in_a_checkpoint_are_loaded(tmp_path, module):
    """--eval-bleu, which the recipes of fairseq have, leaves BLEU's counts there, under the name of its numpy."""
    state = torch.load(GOLDEN / "codes/checkpoint_best.pt", weights_only=False)
    state["extra_state"] = {
        "counts": np.array([1, 2]),
        "bleu": np.float64(3.5),
        "best": np.float32(1),
    }
    for side in ("xx", "en"):
        shutil.copy(GOLDEN / "codes" / f"dict.{side}.txt", tmp_path)
    file = tmp_path / "checkpoint_best.pt"
    torch.save(state, file)
    with zipfile.ZipFile(file) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    (name,) = (n for n in parts if n.endswith("data.pkl"))
    there = (
        "numpy._core.multiarray"
        if b"numpy._core.multiarray" in parts[name]
        else "numpy.core.multiarray"
    )
    parts[name] = parts[name].replace(f"c{there}\n".encode(), f"c{module}\n".encode())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for one, content in parts.items():
            packed.writestr(one, content)
    made = FairseqImporter(FairseqFormat(source_lang="xx", target_lang="en")).read(tmp_path)
    assert made.settings["architecture"]["dim"] == 16


def test_no_translation_is_longer_than_there_are_positions(tmp_path):
    """One that did not end ended the command, and the answers to all others with it."""
    ours = read(GOLDEN / "sentencepiece", tmp_path / "run", *SUBWORDS["sentencepiece"])
    texts = ["ka lo", "ka lo mi " * 40, "mi"]
    for beam in (1, 3):
        found = ours.nbest(texts, beam=beam, max_extra=500, no_repeat_ngram=0, forbidden=["one"])
        assert all(len(row[0].tokens) < 64 for row in found)
    assert ours.max_length == 63 and ours.too_long
    line = [
        f"training.finetune_from={tmp_path / 'run'}",
        f"run_dir={tmp_path / 'tuned'}",
        f"data.root={tmp_path}",
    ]
    from mtplug.cli.train import main
    from mtplug.testing.tiny import write_corpus

    write_corpus(tmp_path)
    text = (tmp_path / "run.yaml").read_text()
    groups = ("task", "tokenizer", "architecture")
    (tmp_path / "t.yaml").write_text(
        "\n".join(x for x in text.split("\n") if not x.startswith(groups))
    )
    assert main([str(tmp_path / "t.yaml"), *line]) == 2
    assert (
        main(
            [
                str(tmp_path / "t.yaml"),
                *line,
                "data.max_length=63",
                "training.max_updates=2",
                "data.test=null",
            ]
        )
        == 0
    )


def test_nothing_is_exported(tiny_run, capsys):
    assert export.main([str(tiny_run), "--format", "fairseq"]) == 2
    assert (
        "--format fairseq: this format can only be read; formats that can be written: "
        in capsys.readouterr().err
    )


class Sly:
    def __reduce__(self):
        return eval, ("1 / 0",)


def test_what_is_not_read_is_said(tmp_path, capsys):
    state = torch.load(GOLDEN / "codes/checkpoint_best.pt", weights_only=False)
    model = vars(state["cfg"]["model"])

    def refused(said, *settings, **changed):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(GOLDEN / "codes", folder)
        arguments = argparse.Namespace(**(model | changed))
        cfg = {**state["cfg"], "model": arguments}
        torch.save({**state, "cfg": cfg}, folder / "checkpoint_best.pt")
        line = ["fairseq", str(folder), *(settings or LANGUAGES), "--output", str(tmp_path / "run")]
        assert import_run.main(line) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not (tmp_path / "run").exists()

    refused("architecture bart_large is not read", _name="bart_large", encoder_embed_dim=None)
    refused("encoder and decoder differ in heads: 4 and 2", encoder_attention_heads=4)
    refused("no_scale_embedding is set", no_scale_embedding=True)
    refused("activation_fn=gelu_fast is none of ours", activation_fn="gelu_fast")
    refused("its output is an adaptive softmax", adaptive_softmax_cutoff="10,20")
    refused("layernorm_embedding is set", layernorm_embedding=True)
    refused(
        "the model (transformer) has no encoder.layer_norm.weight",
        encoder_normalize_before=True,
        decoder_normalize_before=True,
    )
    refused("has no train.XX-YY.*, which would name the languages", "target_lang=en")
    refused("dict.yy.txt is missing", "source_lang=yy", "target_lang=en")
    refused("nowhere has no subwords", *LANGUAGES, "source_subwords=nowhere")
    refused(
        "give two files of one kind", *LANGUAGES, "source_subwords=a.model", "target_subwords=codes"
    )
    file = tmp_path / "sly.pt"
    torch.save({"model": {}, "args": Sly()}, file)
    assert import_run.main(["fairseq", str(file), "--output", str(tmp_path / "run")]) == 2
    assert "which is not loaded, as it could run code" in capsys.readouterr().err
    file.write_text("no checkpoint")
    assert import_run.main(["fairseq", str(file), "--output", str(tmp_path / "run")]) == 2
    assert "is no file of torch's, or cut off" in capsys.readouterr().err
    assert import_run.main(["fairseq", str(GOLDEN), "--output", str(tmp_path / "run")]) == 2
    assert "has no checkpoint_best.pt, checkpoint_last.pt, model.pt" in capsys.readouterr().err
