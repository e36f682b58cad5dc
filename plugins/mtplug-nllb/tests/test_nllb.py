"""Folders of transformers' models against `transformers` itself: the same ids, the same logits, the same translations."""

import json
import shutil

import pytest
import torch
from mtplug_nllb.exporter import M2M_LANGUAGES
from random_models import CODES, TARGETS, TEXTS, their_ids

import mtplug
from mtplug import testing
from mtplug.cli import export, import_run, peft, train


def test_ids_and_log_probabilities_are_those_of_the_original(made):
    _, _, model, tokenizer, run = made
    ours = mtplug.load(run, device="cpu")
    inputs = tokenizer(TEXTS, text_target=TARGETS, return_tensors="pt", padding=True)
    for row, ids in zip(inputs["input_ids"], ours.task.source_tokenizer.encode(TEXTS), strict=True):
        assert [i for i in row.tolist() if i != 1] == [*their_ids(ours, ids), 2]
    labels = inputs["labels"]
    start = torch.full((len(TEXTS), 1), 2)
    with torch.no_grad():
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            decoder_input_ids=torch.cat([start, labels[:, :-1]], 1),
        ).logits  # fmt: skip
    truth = logits.log_softmax(-1)
    for row, scored in enumerate(ours.score(TEXTS, TARGETS)):
        written = [(t, i) for t, i in enumerate(labels[row].tolist()) if i != 1][1:]  # no code
        wanted = [truth[row, t, i].item() for t, i in written]
        assert scored.token_scores == pytest.approx(wanted, abs=1e-4)


def test_translations_are_those_of_the_original(made):
    kind, _, model, tokenizer, run = made
    ours = mtplug.load(run, device="cpu")
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    code = tokenizer.convert_tokens_to_ids(CODES[kind][1])
    found = model.generate(
        **inputs, forced_bos_token_id=code, num_beams=1, do_sample=False, max_new_tokens=12,
        bad_words_ids=[[1]], forced_eos_token_id=None,
    )  # fmt: skip
    wanted = ours.nbest(TEXTS, beam=1, max_ratio=0, max_extra=11)
    assert any(row[0].parts[0] for row in wanted)
    for ids, (best,) in zip(found.tolist(), wanted, strict=True):
        assert ids[1] == code
        written = [i for i in ids[2:] if i not in (1, 2)]
        assert written[: len(best.parts[0])] == their_ids(ours, best.parts[0])
        assert best.finished or len(best.parts[0]) >= 10


def test_another_language_is_a_setting(made):
    """The first token is told by the original as by ours, with any code that the model has."""
    kind, _, model, tokenizer, run = made
    other = {"nllb": "zho_Hans", "m2m100": "__fr__", "mbart50": "fr_XX"}[kind]
    ours = mtplug.load(run, device="cpu", overrides=[f"tokenizer.target_code={other}"])
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    code = tokenizer.convert_tokens_to_ids(other)
    start = torch.tensor([[2, code]] * len(TEXTS))
    with torch.no_grad():
        truth = model(**inputs, decoder_input_ids=start).logits[:, -1].log_softmax(-1)
    for row, (best,) in zip(truth, ours.nbest(TEXTS, beam=1), strict=True):
        token = their_ids(ours, best.parts[0])[0] if best.parts[0] else 2
        assert best.token_scores[0] == pytest.approx(row[token].item(), abs=1e-4)


def test_a_search_step_by_step_gives_the_scores_of_whole_targets(made):
    *_, run = made
    ours = mtplug.load(run, device="cpu")
    for row in ours.nbest(TEXTS, beam=3, nbest=2, max_ratio=0, max_extra=9):
        for one in row:
            assert len(one.token_scores) == len(one.parts[0]) + one.finished or not one.finished
    batched = ours.nbest(TEXTS, beam=3, max_ratio=0, max_extra=9, attention=True)
    for text, (best, *_) in zip(TEXTS, batched, strict=True):
        alone = ours.nbest([text], beam=3, max_ratio=0, max_extra=9)[0][0]
        assert alone.parts == best.parts and alone.score == pytest.approx(best.score, abs=1e-5)
        assert best.attention.shape == (len(best.tokens), len(best.source_tokens))


def test_what_was_read_is_written_as_it_was(made, transformers, tmp_path):
    kind, folder, model, _, run = made
    out = tmp_path / "out"
    arguments = ["--format", "nllb", "--output", str(out), "--debug"]
    assert export.main([str(run), *arguments, f"like={folder}"]) == 0
    again = type(model).from_pretrained(out)
    theirs, mine = model.state_dict(), again.state_dict()
    assert theirs.keys() == mine.keys()
    for name, tensor in theirs.items():
        if "embed_positions" in name:  # whose first two rows nothing looks at
            tensor, mine[name] = tensor[2:], mine[name][2:]
        assert torch.equal(tensor, mine[name]), name
    assert {f.name for f in folder.iterdir()} <= {f.name for f in out.iterdir()}
    testing.check_exporter("nllb", f"like={folder}", "source_code=" + CODES[kind][0],
                           "target_code=" + CODES[kind][1], run=run)  # fmt: skip


def test_it_is_fine_tuned_whole_and_by_lora(made, tmp_path):
    """The pairs are learnt: their loss falls."""
    *_, base = made
    common = ("optimizer.lr=0.003", "data.max_length=32")
    for name, settings in (("whole", ()), ("lora", ("peft.name=lora",))):
        texts = testing.pairs(100, seed=3)
        run, losses = testing.finetune(base, tmp_path / name, texts, *common, *settings)
        assert losses[-1] < losses[0]
        assert mtplug.load(run, device="cpu").translate(TEXTS)


@pytest.mark.parametrize("made", ["nllb"], indirect=True)
def test_an_adapter_for_another_direction(made, tmp_path, monkeypatch, capsys):
    """A base was imported once more for each direction; and with `--adapter`, an adapter for another one was given texts, and
    a decoder, of the base's languages without a word."""
    *_, run = made
    monkeypatch.chdir(tmp_path)
    for side, name in enumerate(("en", "fr")):
        text = "".join(f"{pair[side]}\n" for pair in testing.pairs(40, seed=3))
        (tmp_path / f"train.{name}").write_text(text)
    corpus = "{source: train.fr, target: train.en}"
    codes = ["tokenizer.source_code=zho_Hans", "tokenizer.target_code=ace_Latn"]
    (tmp_path / "empty.yaml").write_text("seed: 1\n")
    line = ["empty.yaml", f"training.finetune_from={run}", f"data.train={corpus}", f"data.valid={corpus}",
            "training.max_updates=2", "peft.name=lora", "validation.translate=false", "validation.best_metric=loss",
            "lr_scheduler.warmup_updates=1", "data.max_length=32", "run_dir=other", "logging.trackers=null"]  # fmt: skip
    assert train.main([*line, *codes, "tokenizer.vocab_size=99"]) == 2
    assert "set no more than source_code and target_code there" in capsys.readouterr().err
    assert train.main([*line, *codes, "--debug"]) == 0
    ours = mtplug.load("other", device="cpu")
    pieces = ours.task.source_tokenizer.ids
    assert ours.task.source_tokenizer.prefixes == {pieces["zho_Hans"]}
    assert ours.model.code == pieces["ace_Latn"]
    stored = json.loads((tmp_path / "other/data/train-0/store.json").read_text())
    assert "ace_Latn" in json.dumps(
        stored
    )  # so that a store of other codes is not taken for this one
    with pytest.raises(mtplug.UserError, match=r"adapter other was trained with tokenizer.source_code=zho_Hans "
                       rf"tokenizer.target_code=ace_Latn, and {run} has tokenizer.source_code=eng_Latn"):  # fmt: skip
        mtplug.load(run, device="cpu", adapters={"x": "other"})
    switched = mtplug.load(run, device="cpu", adapters={"x": "other"}, overrides=codes)
    assert switched.translate(TEXTS, adapters="x") == ours.translate(TEXTS)
    for n, path in enumerate(
        ("other", "other/checkpoints/last")
    ):  # of the checkpoint it was the base's direction
        assert peft.main(["merge", path, "--output", f"merged-{n}", "--debug"]) == 0
        merged = mtplug.load(f"merged-{n}", device="cpu")
        assert merged.model.code == pieces["ace_Latn"]
        assert merged.translate(TEXTS) == ours.translate(TEXTS)


def test_what_it_cannot_be_is_told_in_one_line(made, tmp_path, capsys):
    kind, folder, *_, run = made
    source, _ = CODES[kind]
    out = ["--output", str(tmp_path / "run")]
    for settings, said in (
        ([], "source_code is missing"),
        ([f"source_code={source[:-1]}"], f"is no language code of this model; did you mean '{source}'"),
        (["source_code=<mask>"], "<mask> is no language code"),  # it was one
        ([f"source_code={source.strip('_')[:2]}"], f"did you mean '{source}'" if kind != "nllb" else "known: ace_Latn, deu_Latn"),
    ):  # fmt: skip
        assert import_run.main(["nllb", str(folder), *settings, *out]) == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    for key, value, said in (
        ("model_type", "bart", "neither m2m_100 nor mbart"),
        ("scale_embedding", False, "scale_embedding is false"),
        ("activation_function", "quick_gelu", "none of ours"),
        ("encoder_layers", 3, "its weights have no"),
        ("decoder_layers", 1, "which ours do not have"),
    ):
        (broken / "config.json").write_text(json.dumps({**config, key: value}))
        assert import_run.main(["nllb", str(broken), f"source_code={source}", *out]) == 2
        assert said in capsys.readouterr().err
    assert export.main([str(run), "--format", "nllb", "--output", str(tmp_path / "x")]) == 2
    assert "like=FOLDER is missing" in capsys.readouterr().err
    (broken / "config.json").write_text(json.dumps({**config, "encoder_layers": 3}))
    arguments = [str(run), "--format", "nllb", f"like={broken}", "--output", str(tmp_path / "x")]
    assert export.main(arguments) == 2
    assert "of another model: encoder_layers is 3 there, 2 here" in capsys.readouterr().err
    # A folder of the same sizes, but another vocabulary, became one that transformers cannot open.
    (broken / "config.json").write_text(json.dumps({**config, "vocab_size": 161}))
    assert export.main(arguments) == 2
    assert "of another model: vocab_size is 161 there, 160 here" in capsys.readouterr().err
    (broken / "config.json").unlink()
    assert import_run.main(["nllb", str(broken), f"source_code={source}", *out]) == 2
    assert "config.json is missing; give the model's folder" in capsys.readouterr().err


def test_text_cannot_say_a_language_code(made):
    kind, *_, run = made
    task = mtplug.load(run, device="cpu").task
    source, target = CODES[kind]
    (ids,) = task.source_tokenizer.encode([f"ka {target} lo <s> <mask>"])
    codes = {task.source_tokenizer.ids[c] for c in CODES[kind]}
    assert [i for i in ids if i in codes] == [task.source_tokenizer.ids[source]] == ids[:1]
    assert task.source_tokenizer.decode([task.source_tokenizer.encode(["ka lo"])[0]]) == ["ka lo"]
    assert not task.target_tokenizer.prefixes and task.source_tokenizer.prefixes == {ids[0]}


def test_the_languages_of_m2m100_are_those_of_transformers(transformers):
    from transformers.models.m2m_100 import tokenization_m2m_100 as theirs

    assert M2M_LANGUAGES.split() == theirs.FAIRSEQ_LANGUAGE_CODES["m2m100"]


def test_architecture_keeps_the_contract():
    testing.check_architecture("nllb", *mtplug.testing.material.TINY_TRANSFORMER)
