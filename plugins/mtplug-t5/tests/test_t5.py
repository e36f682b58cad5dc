"""Folders of transformers' models against `transformers` itself: the same ids, the same logits, the same translations."""

import io
import json
import shutil

import pytest
import sentencepiece
import torch

import mtplug
from mtplug import testing
from mtplug.cli import export, import_run
from mtplug.exporting.hugging_face import read_weights
from mtplug.files import save_tensors

TEXTS = ["ka lo mi", "ti", "zu", "ka ka ti mi lo"]
TARGETS = ["one two three four", "ten", "six", "two two nine four"]
SIZES = {
    "d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 3, "d_kv": 6, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}  # fmt: skip
KINDS = {
    # its own kind, what is told of it
    "t5": {"feed_forward_proj": "relu", "vocab_size": 164},
    "t5 1.1": {"feed_forward_proj": "gated-gelu", "vocab_size": 164, "tie_word_embeddings": False},
    "byt5": {"feed_forward_proj": "gated-gelu", "vocab_size": 384, "tie_word_embeddings": False},
    "madlad": {
        "feed_forward_proj": "gated-gelu", "vocab_size": 40, "tie_word_embeddings": False,
        "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers")


def subwords(file, **settings):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in testing.pairs(300, seed=1) for text in pair]),
        model_writer=written, vocab_size=40, model_type="unigram", minloglevel=2, num_threads=1, **settings,
    )  # fmt: skip
    file.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def original(kind, transformers, folder):
    """A random model in the files that the published ones have, and what makes ids of text."""
    folder.mkdir()
    if kind == "byt5":
        tokenizer = transformers.ByT5Tokenizer()
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')

        def encode(text):
            return tokenizer(text)["input_ids"]
    else:
        ids = {} if kind == "madlad" else {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        cutter = subwords(folder / "spiece.model", **ids)

        def encode(text):
            return [*cutter.encode(text), cutter.eos_id()]

    settings = {"decoder_start_token_id": 0, **KINDS[kind]}
    config = transformers.T5Config(**SIZES, **settings, dropout_rate=0.1)
    torch.manual_seed(5)
    model = transformers.T5ForConditionalGeneration(config).eval()
    if (
        kind != "t5"
    ):  # transformers 5 ties them whatever the settings say, until weights are read that differ
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(config.vocab_size, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    tensors = {k: v for k, v in model.state_dict().items() if "embed_tokens" not in k}
    if kind == "t5":
        del tensors["lm_head.weight"]
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    told = {**config.to_dict(), "tie_word_embeddings": kind == "t5"}
    (folder / "config.json").write_text(json.dumps(told))
    return model, encode


@pytest.fixture(scope="module", params=KINDS)
def made(request, transformers, tmp_path_factory):
    """(the kind, its folder, the original model and its ids of a text, the run)."""
    there = tmp_path_factory.mktemp("t5")
    model, encode = original(request.param, transformers, there / "original")
    arguments = ["t5", str(there / "original"), "target_lang=de", "--output", str(there / "run")]
    assert import_run.main([*arguments, "--debug"]) == 0
    return request.param, there / "original", model, encode, there / "run"


def their_ids(kind, ours, ids):
    """Our ids as the original numbers them: of MADLAD unknown, padding and `</s>` are 0, 1 and 2."""
    return [{0: 1, 1: 2, 2: 0}.get(i, i) for i in ids] if kind == "madlad" else ids


def test_ids_and_log_probabilities_are_those_of_the_original(made):
    kind, _, model, encode, run = made
    ours = mtplug.load(run, device="cpu")
    tokenizer = ours.task.source_tokenizer
    assert len(tokenizer) == KINDS[kind]["vocab_size"]
    for text, target, scored in zip(TEXTS, TARGETS, ours.score(TEXTS, TARGETS), strict=True):
        source, labels = encode(text), encode(target)
        assert [*their_ids(kind, ours, tokenizer.encode([text])[0]), source[-1]] == source
        start = KINDS[kind].get("decoder_start_token_id", 0)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([source]),
                decoder_input_ids=torch.tensor([[start, *labels[:-1]]]),
            ).logits  # fmt: skip
        wanted = logits.log_softmax(-1)[0].gather(1, torch.tensor(labels)[:, None])[:, 0]
        assert scored.token_scores == pytest.approx(wanted.tolist(), abs=1e-4)


def test_translations_are_those_of_the_original(made):
    kind, _, model, encode, run = made
    ours = mtplug.load(run, device="cpu")
    pad, end = (KINDS[kind].get(key, n) for n, key in enumerate(("pad_token_id", "eos_token_id")))
    wanted = ours.nbest(TEXTS, beam=1, max_ratio=0, max_extra=11)
    assert any(row[0].parts[0] for row in wanted)
    for text, (best,) in zip(TEXTS, wanted, strict=True):
        found = model.generate(
            torch.tensor([encode(text)]), num_beams=1, do_sample=False, max_new_tokens=11,
            bad_words_ids=[[pad]], pad_token_id=pad, eos_token_id=end,
        )  # fmt: skip
        written = [i for i in found[0].tolist()[1:] if i not in (pad, end)]
        assert written[: len(best.parts[0])] == their_ids(kind, ours, best.parts[0])
        assert best.finished or len(best.parts[0]) >= 10


def test_what_was_read_is_written_as_it_was(made, tmp_path):
    _, folder, *_, run = made
    out = tmp_path / "out"
    arguments = ["--format", "t5", "--output", str(out), "--debug"]
    assert export.main([str(run), *arguments, f"like={folder}"]) == 0
    theirs = read_weights(folder)
    mine = read_weights(out)
    assert theirs.keys() == mine.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-6, atol=1e-7)
    assert {f.name for f in folder.iterdir()} <= {f.name for f in out.iterdir()}
    testing.check_exporter("t5", f"like={folder}", run=run)


def test_it_is_fine_tuned_whole_packed_and_by_lora(made, tmp_path):
    *_, base = made
    common = ("optimizer.lr=0.003", "data.max_length=64")
    for name, settings in (("whole", ("training.packing=true",)), ("lora", ("peft.name=lora",))):
        texts = testing.pairs(100, seed=3)
        run, losses = testing.finetune(base, tmp_path / name, texts, *common, *settings)
        assert losses[-1] < losses[0]
        assert mtplug.load(run, device="cpu").translate(TEXTS)


def test_sentinels_are_those_of_transformers(made, transformers):
    kind, *_, run = made
    tokenizer = mtplug.load(run, device="cpu").task.source_tokenizer
    if kind in ("t5", "t5 1.1"):
        (ids,) = tokenizer.encode(["ka <extra_id_0> lo <extra_id_99>"])
        # As of T5, whose SentencePiece has 32,000 pieces and <extra_id_0> is 32,099.
        assert [i for i in ids if i >= 40] == [139, 40]
    elif kind == "byt5":
        theirs = transformers.ByT5Tokenizer()("ka <extra_id_0>", add_special_tokens=False)
        assert tokenizer.encode(["ka <extra_id_0>"]) == [theirs["input_ids"]]


def test_what_it_cannot_be_is_told_in_one_line(made, tmp_path, capsys):
    kind, folder, *_, run = made
    broken, out = tmp_path / "broken", ["--output", str(tmp_path / "run")]
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    for key, value, said in (
        ("model_type", "umt5", "neither t5 nor mt5"),
        ("feed_forward_proj", "gated-elu", "none of ours"),
        ("num_layers", 3, "its weights have no"),
        ("num_decoder_layers", 1, "which ours do not have"),
    ):
        (broken / "config.json").write_text(json.dumps({**config, key: value}))
        assert import_run.main(["t5", str(broken), *out]) == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1
    if kind != "byt5":
        (broken / "config.json").write_text(json.dumps(config))
        (broken / "spiece.model").unlink()
        assert import_run.main(["t5", str(broken), *out]) == 2
        assert "has no spiece.model" in capsys.readouterr().err
    assert export.main([str(run), "--format", "t5", "--output", str(tmp_path / "x")]) == 2
    assert "like=FOLDER is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [(), ("tie_embeddings=all", "activation=relu", "heads=3", "head_dim=6")], ids=str
)
def test_architecture_keeps_the_contract(settings):
    testing.check_architecture("t5", *testing.material.TINY_TRANSFORMER, *settings)


@pytest.mark.parametrize("own_output", [False, True])
@pytest.mark.parametrize(
    ("family", "told"),
    [("T5", {}), ("T5", {"tie_word_embeddings": False}), ("MT5", {"tie_word_embeddings": False})],
)
def test_what_transformers_5_saved_is_read_and_written_as_it_computes(
    family, told, own_output, transformers, tmp_path
):
    """It writes `tie_word_embeddings: true` of all of them, which was taken for T5's division of what the logits are made of:
    a Flan-T5 or mT5 that was fine-tuned and saved there had other probabilities here."""
    (tmp_path / "original").mkdir()
    subwords(tmp_path / "original" / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    config = getattr(transformers, f"{family}Config")(
        **SIZES, vocab_size=40, decoder_start_token_id=0, **told
    )
    torch.manual_seed(5)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    if own_output:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(40, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "original")
    assert json.loads((tmp_path / "original" / "config.json").read_text())["tie_word_embeddings"]
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert import_run.main(["t5", str(tmp_path / "original"), "--output", run, "--debug"]) == 0
    like = f"like={tmp_path / 'original'}"
    assert export.main([run, "--format", "t5", like, "--output", out, "--debug"]) == 0
    again = type(model).from_pretrained(out).eval()
    ours = mtplug.load(run, device="cpu")
    ids = ours.task.source_tokenizer.encode(TEXTS)
    targets = ours.task.source_tokenizer.encode(TARGETS)
    scored = ours.score(TEXTS, TARGETS)
    for source, target, mine in zip(ids, targets, scored, strict=True):
        labels = torch.tensor([[*target, 1]])
        for theirs in (model, again):
            with torch.no_grad():
                logits = theirs(input_ids=torch.tensor([[*source, 1]]), labels=labels).logits
            wanted = logits.log_softmax(-1)[0].gather(1, labels[0][:, None])[:, 0]
            assert mine.token_scores == pytest.approx(wanted.tolist(), abs=1e-4)
