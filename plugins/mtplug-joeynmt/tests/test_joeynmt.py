"""Runs made of JoeyNMT's models, against what JoeyNMT itself found (expected.json, see originals.py)."""

import json
import pickle
from pathlib import Path

import originals
import pytest
import torch
import yaml
from mtplug_joeynmt.exporter import _search

import mtplug
from mtplug import testing
from mtplug.cli import export, import_run

EXPECTED = json.loads(Path(originals.__file__).with_name("expected.json").read_text("utf-8"))


def read(folder, output, *settings):
    line = ["joeynmt", str(folder), *settings, "--output", str(output)]
    assert import_run.main([*line, "--debug"]) == 0
    return mtplug.load(output, device="cpu")


@pytest.fixture(scope="module", params=originals.KINDS)
def made(request, tmp_path_factory):
    """(kind, its folder, its run, the run loaded)."""
    there = tmp_path_factory.mktemp(request.param)
    originals.write(request.param, there / "original")
    return request.param, there / "original", there / "run", read(there / "original", there / "run")


def test_a_model_of_joeynmt_cuts_and_scores_as_there(made):
    """Pre- and post-norm, DeepNet's weighted residuals, no layer_norm in the settings; tables tied in each way."""
    kind, _, _, ours = made
    rows, texts = EXPECTED[kind], (originals.sources(kind), originals.targets(kind))
    for side, given in zip(("source", "target"), texts, strict=True):
        tokenizer = getattr(ours.task, f"{side}_tokenizer")
        cut = [tokenizer.tokens(ids) for ids in tokenizer.encode(given)]
        assert cut == [row[side] for row in rows]
    for row, scored in zip(rows, ours.score(*texts), strict=True):
        assert scored.token_scores == pytest.approx(row["scores"], abs=1e-4)


def test_it_translates_as_there(made):
    """JoeyNMT cuts off at the last token, where ours end."""
    kind, _, _, ours = made
    found = ours.nbest(originals.sources(kind), beam=1)
    for (best, *_), row in zip(found, EXPECTED[kind], strict=True):
        greedy = (
            row["greedy"][: row["greedy"].index("</s>")]
            if "</s>" in row["greedy"]
            else row["greedy"]
        )
        assert best.tokens == greedy[: len(best.tokens)] and len(best.tokens) >= min(
            len(greedy), 11
        )
    ids = {
        piece: i
        for i, piece in enumerate(
            ours.task.target_tokenizer.tokens(range(len(ours.task.target_tokenizer)))
        )
    }
    decoded = ours.task.target_tokenizer.decode(
        [[ids[p] for p in row["greedy"]] for row in EXPECTED[kind]]
    )
    assert [text.strip() for text in decoded] == [row["text"].strip() for row in EXPECTED[kind]]


def test_a_beam_is_the_same_alone_and_in_a_batch(made):
    """A start token that is not `</s>` must reach each step of a search."""
    kind, _, _, ours = made
    texts = originals.sources(kind)
    together = ours.nbest(texts, beam=3)
    for text, (best, *_) in zip(texts, together, strict=True):
        (alone, *_) = ours.nbest([text], beam=3)[0]
        assert alone.tokens == best.tokens and alone.score == pytest.approx(best.score, abs=1e-5)


def test_the_settings_of_its_search_are_taken_over(made):
    search = yaml.safe_load((made[2] / "config.yaml").read_text())["search"]
    assert (search["beam"], search["length_norm"], search["length_penalty"]) == (5, "gnmt", 1.0)
    assert (search["max_ratio"], search["max_extra"], search["min_length"]) == (0, 12, 1)
    free = _search({"beam_alpha": -1, "max_output_length": -1, "generate_unk": False})
    assert (free["length_penalty"], free["max_ratio"], free["max_extra"]) == (0, 1.5, 0)
    assert not free["allow_unknown"] and free["beam"] == 1


def test_tokenizers_go_to_other_processes(made):
    kind, _, _, ours = made
    again = pickle.loads(pickle.dumps(ours.task.source_tokenizer))
    texts = originals.sources(kind)
    assert again.encode(texts) == ours.task.source_tokenizer.encode(texts)


def test_language_tags_are_told_apart_from_text(made):
    kind, _, _, ours = made
    source, target = ours.task.source_tokenizer, ours.task.target_tokenizer
    assert len(source.prefixes) == (2 if kind == "pre" else 0)
    if kind == "pre":
        tag = target.inner.ids["<xx>"]
        start = target.inner.ids["<s>"]
        assert target.decode([[tag, start, target.inner.ids["▁one"]]]) == ["one"]


def test_moses_cuts_and_joins(tmp_path):
    """Expected by sacremoses 0.2.0, which JoeyNMT calls."""
    pytest.importorskip("sacremoses")
    originals.write("open", tmp_path / "original")
    file = tmp_path / "original/config.yaml"
    config = yaml.safe_load(file.read_text())
    for side in originals.VOCAB:
        config["data"][side] |= {"tokenizer_cfg": {"pretokenizer": "moses"}, "lang": "en"}
    file.write_text(yaml.safe_dump(config))
    ours = read(tmp_path / "original", tmp_path / "run")
    target = ours.task.target_tokenizer
    (ids,) = target.encode(["one two  ten?"])
    assert target.tokens(ids) == ["one", "two", "ten", "?"]
    assert target.decode([ids]) == ["one two ten?"]


def test_it_is_fine_tuned_whole_and_by_lora(tmp_path):
    """The pairs are learnt: their loss falls."""
    kind, base = "pre", tmp_path / "base"
    originals.write(kind, tmp_path / "original")
    read(tmp_path / "original", base)
    texts = [*zip(originals.sources(kind), originals.targets(kind), strict=True)] * 5
    common = ("training.max_tokens=100", "optimizer.lr=0.01")
    for name, settings in (("whole", ()), ("lora", ("peft.name=lora",))):
        run, losses = testing.finetune(base, tmp_path / name, texts, *common, *settings)
        assert losses[-1] < losses[0]
        mtplug.load(run, device="cpu").translate(originals.sources(kind))


def test_ctranslate2_translates_with_it(made, tmp_path, capsys):
    """Exporting compares scores with the model's own; the search with it has to find the same, too."""
    pytest.importorskip("mtplug_ctranslate2")
    kind, _, run, _ = made
    line = [str(run), "--format", "ctranslate2", "--output", str(tmp_path / "ct2")]
    if kind == "open":
        assert export.main(line) == 2
        assert "not JoeyTransformer" in capsys.readouterr().err
        return
    assert export.main([*line, "--debug"]) == 0
    settings = ["search.min_length=0"]  # which CTranslate2 has
    other = mtplug.load(run, device="cpu", backend="ctranslate2", overrides=settings)
    texts = originals.sources(kind)
    wanted = mtplug.load(run, device="cpu", overrides=settings).nbest(texts, beam=1)
    found = other.nbest(texts, beam=1)
    assert [best.tokens for best, *_ in found] == [best.tokens for best, *_ in wanted]


def test_the_checkpoint_that_is_read(tmp_path):
    """best.ckpt before the last one, and any by its path."""
    originals.write("post", tmp_path)
    state = torch.load(tmp_path / "3.ckpt")
    for name in ("20.ckpt", "best.ckpt", "latest.ckpt"):
        state["model_state"]["src_embed.lut.weight"] = torch.full_like(
            state["model_state"]["src_embed.lut.weight"], float(len(name))
        )
        torch.save(state, tmp_path / name)
    from mtplug_joeynmt.exporter import JoeyFormat, JoeyImporter

    def found(source):
        return JoeyImporter(JoeyFormat()).read(source).weights["encoder_embedding.weight"][0, 0]

    assert found(tmp_path) == len("best.ckpt") and found(tmp_path / "20.ckpt") == len("20.ckpt")
    (tmp_path / "best.ckpt").unlink()
    assert found(tmp_path) == len("latest.ckpt")
    (tmp_path / "latest.ckpt").unlink()
    assert found(tmp_path) == len("20.ckpt")  # and not 3.ckpt, which comes last by name


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": {"encoder": {"type": "recurrent"}}}, "model.encoder.type is recurrent; only transformer is read"),
        ({"model": {"decoder": {"type": "recurrent"}}}, "model.decoder.type is recurrent"),
        ({"model": {"decoder": {"ff_size": 30}}}, "differ in ff_size: 24 and 30"),
        ({"model": {"decoder": {"layer_norm": "pre"}}}, "differ in layer_norm: post and pre"),
        ({"model": {"decoder": {"activation": "gelu"}}}, "differ in activation"),
        ({"model": {"decoder": {"num_layers": 3}}}, "no decoder.layers.2."),
        ({"model": {"decoder": {"num_layers": 1}}}, "the model has decoder.layers.1."),
        ({"model": {"encoder": {"layer_norm": "pre"}, "decoder": {"layer_norm": "pre"}}}, "residual connections are weighted"),
        ({"data": {"special_symbols": {"sep_token": "<sep>"}}}, "sep_token: models that take prompts are not read"),
        ({"data": {"trg": {"has_prompt": True}}}, "data.trg.has_prompt: models that take prompts are not read"),
        ({"data": {"src": "xx"}}, "is of JoeyNMT 1; only models of JoeyNMT 2 are read"),
        ({"data": {"src": {"level": "byte"}}}, "level or tokenizer_type is byte"),
        ({"data": {"src": {"tokenizer_cfg": {"codes": "other"}}}}, "source_subwords=FILE says where it is"),
        ({"data": {"src": {"tokenizer_cfg": {"separator": "##"}}}}, "separator is ##; only @@ is read"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_is_told_in_one_line(change, said, tmp_path, capsys):
    originals.write("post", tmp_path / "original")
    file = tmp_path / "original/config.yaml"

    def merged(old, new):
        both = isinstance(old, dict) and isinstance(new, dict)
        return {**old, **{k: merged(old.get(k), v) for k, v in new.items()}} if both else new

    file.write_text(yaml.safe_dump(merged(yaml.safe_load(file.read_text()), change)))
    line = ["joeynmt", str(tmp_path / "original"), "--output", str(tmp_path / "run")]
    assert import_run.main(line) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_files_that_are_missing_or_another_models(tmp_path, capsys):
    folder = tmp_path / "original"
    originals.write("post", folder)
    line = ["joeynmt", str(folder), "--output", str(tmp_path / "run")]
    with (folder / "trg_vocab.txt").open("a") as file:
        file.write("more\n")
    assert import_run.main(line) == 2
    assert "symbols of the target, trg_vocab.txt" in capsys.readouterr().err
    for name, said in (("trg_vocab.txt", "is missing: JoeyNMT writes it"), ("3.ckpt", "best.ckpt, latest.ckpt or NUMBER"),
                       ("config.yaml", "no configuration of JoeyNMT's")):  # fmt: skip
        originals.write("post", folder)
        (folder / name).unlink()
        assert import_run.main(line) == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1


def test_architecture_keeps_the_contract():
    settings = ("norm=pre", "scale_embeddings=false", "start=4")
    testing.check_architecture("joeynmt", *testing.material.TINY_TRANSFORMER, *settings)
