"""Marian's own format. The numbers are what transformers' converter (4.40, with its `MarianMTModel`) makes of the same file."""

import numpy
import pytest
import sentencepiece
import torch
import yaml

import mtplug
from mtplug import testing
from mtplug.cli import import_run
from mtplug.data.merged_words import Words
from mtplug.exporting.marian_npz import OPTIONS

WORDS = ["</s>", "<unk>", "no", "der", "die", "Mann", "1e3", "null", "geht"]
SIZE, INNER, HEADS, LAYERS = 8, 12, 2, 2
SOURCE, TARGET = "der Mann geht no", "die null 1e3"


def model(tables=("Wemb",)):
    """Arrays of a random model, the same for ever: numpy keeps the streams of `RandomState`."""
    random = numpy.random.RandomState(0)

    def drawn(*shape):
        return random.normal(0, 0.4, shape).astype("float32")

    arrays = {}
    for stack in ("encoder", "decoder"):
        for n in range(1, LAYERS + 1):
            at = f"{stack}_l{n}_"
            for block in ("self", "context")[: 1 + (stack == "decoder")]:
                for part in "qkvo":
                    arrays[f"{at}{block}_W{part}"] = drawn(SIZE, SIZE)
                    arrays[f"{at}{block}_b{part}"] = drawn(1, SIZE)
                arrays[f"{at}{block}_Wo_ln_scale"] = 1 + drawn(1, SIZE)
                arrays[f"{at}{block}_Wo_ln_bias"] = drawn(1, SIZE)
            arrays[f"{at}ffn_W1"], arrays[f"{at}ffn_b1"] = drawn(SIZE, INNER), drawn(1, INNER)
            arrays[f"{at}ffn_W2"], arrays[f"{at}ffn_b2"] = drawn(INNER, SIZE), drawn(1, SIZE)
            arrays[f"{at}ffn_ffn_ln_scale"] = 1 + drawn(1, SIZE)
            arrays[f"{at}ffn_ffn_ln_bias"] = drawn(1, SIZE)
    arrays["decoder_ff_logit_out_b"] = drawn(1, len(WORDS))
    for name in tables:
        arrays[name] = drawn(len(WORDS), SIZE)
    return arrays


def options(**changed):
    plain = {
        "type": "transformer", "dim-emb": SIZE, "dim-vocabs": [len(WORDS)] * 2, "enc-depth": LAYERS,
        "dec-depth": LAYERS, "transformer-heads": HEADS, "transformer-dim-ffn": INNER,
        "transformer-ffn-activation": "swish", "transformer-preprocess": "", "transformer-postprocess": "dan",
        "transformer-dropout": 0.2, "layer-normalization": False,
    }  # fmt: skip
    return plain | {name.replace("_", "-"): value for name, value in changed.items()}


def write(folder, arrays, told=None, named=True):
    """A folder as marian's training leaves it, with a vocabulary of words."""
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump(options() if told is None else told).encode() + b"\0"
    numpy.savez(folder / "model.npz", **arrays, **{OPTIONS: numpy.frombuffer(text, numpy.int8)})
    # As Marian writes it, where words that YAML takes for something else have no quotes.
    lines = "".join(f"{word}: {i}\n" for i, word in enumerate(WORDS))
    (folder / "vocab.yml").write_text(lines, encoding="utf-8")
    if named:
        there = {"models": ["model.npz"], "vocabs": ["/elsewhere/vocab.yml", "vocab.yml"]}
        there |= {"beam-size": 7, "normalize": 0.6}
        (folder / "decoder.yml").write_text(yaml.safe_dump(there), encoding="utf-8")
    return folder


def imported(source, out, *settings):
    assert import_run.main(["marian_npz", str(source), *settings, "--output", str(out)]) == 0
    return mtplug.load(out, device="cpu")


def token_scores(translator, source=SOURCE, target=TARGET):
    return translator.score([source], [target])[0].token_scores


@pytest.mark.parametrize(
    ("tables", "scores"), [
        (("Wemb",), [-2.087558, -2.185949, -2.899474, -2.652753]),
        (("encoder_Wemb", "decoder_Wemb"), [-1.16713, -3.118531, -6.914704, -3.446485]),
    ],
)  # fmt: skip
def test_scores_are_those_of_the_model(tables, scores, tmp_path):
    translator = imported(write(tmp_path / "marian", model(tables)), tmp_path / "run")
    assert token_scores(translator) == pytest.approx(scores, abs=2e-6)
    assert isinstance(translator.task.source_tokenizer, Words)
    search = translator.search.config
    assert (search.beam, search.length_penalty, search.allow_unknown) == (7, 0.6, False)
    assert translator.task.source_tokenizer.decode(
        translator.task.source_tokenizer.encode(["no null Fisch"])
    ) == ["no null <unk>"]


@pytest.mark.parametrize(("name", "turned"), [("W", True), ("Wt", False)])
def test_an_output_of_its_own_lies_one_way_or_the_other(name, turned, tmp_path):
    """Written out, the decoder's table as output changes nothing; Marian before 1.10 has it as (C, V)."""
    arrays = model(("encoder_Wemb", "decoder_Wemb"))
    table = arrays["decoder_Wemb"]
    arrays[f"decoder_ff_logit_out_{name}"] = table.T if turned else table
    translator = imported(write(tmp_path / "marian", arrays), tmp_path / "run")
    tied = write(tmp_path / "tied", model(("encoder_Wemb", "decoder_Wemb")))
    want = token_scores(imported(tied, tmp_path / "tied-run"))
    assert token_scores(translator) == pytest.approx(want, abs=2e-6)


def test_padding_is_no_symbol_of_the_model(tmp_path):
    translator = imported(write(tmp_path / "marian", model()), tmp_path / "run")
    bias = translator.model.output_bias
    with torch.no_grad():
        before = token_scores(translator)
        bias[0] = -1e9
    assert token_scores(translator) == pytest.approx(before, abs=1e-6)


def test_text_is_cut_by_a_vocabulary_that_is_a_sentencepiece_model(tmp_path):
    text = tmp_path / "text"
    text.write_text("\n".join(source for source, _ in testing.pairs(60, seed=1)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=20, bos_id=-1, eos_id=0, unk_id=1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    own = sentencepiece.SentencePieceProcessor(str(tmp_path / "m.model"))
    arrays = model()
    arrays["Wemb"] = numpy.repeat(arrays["Wemb"], 4, 0)[: len(own)]
    arrays["decoder_ff_logit_out_b"] = numpy.zeros((1, len(own)), "float32")
    folder = write(tmp_path / "marian", arrays, named=False)
    (tmp_path / "m.model").rename(folder / "v.spm")
    file = str(folder / "v.spm")
    translator = imported(
        folder / "model.npz", tmp_path / "run", f"vocabs=[{file},{file}]", "source_lang=de"
    )
    tokenizer = translator.task.source_tokenizer
    for source, _ in testing.pairs(5, seed=1):
        (ids,) = tokenizer.encode([source])
        assert tokenizer.tokens(ids) == own.encode(source, out_type=str)
        assert tokenizer.decode([ids]) == [source]
    assert translator.task.config.source_lang == "de"


REFUSED = [
    (options(transformer_preprocess="n"), {}, "transformer-preprocess is 'n'; only models with '' are read"),
    (options(type="s2s"), {}, "type is 's2s'; only models with 'transformer' are read"),
    (options(right_left=True), {}, "right-left is True"),
    (options(transformer_ffn_activation="prelu"), {}, "activation prelu is none of ours"),
    (options(), {"decoder_l1_rnn_W": numpy.ones((8, 8), "float32")}, "the model has decoder_l1_rnn_W, which ours do not have"),
    (options(), {"encoder_l1_ffn_W1": numpy.ones((8, 12), "int8")}, "holds int8 weights, it is quantised"),
    (options(), {"encoder_l2_ffn_b2": None}, "the model has no model.encoder.layers.1.fc2.bias"),
    (options(), {"Wemb": numpy.ones((8, 8), "float32")}, "8 symbols of the source, its vocabulary 9: another vocabulary"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "changed", "said"), REFUSED)
def test_what_ours_cannot_be_is_told_in_a_line(told, changed, said, tmp_path, capsys):
    arrays = {name: x for name, x in (model() | changed).items() if x is not None}
    folder = write(tmp_path / "marian", arrays, told)
    assert import_run.main(["marian_npz", str(folder), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_files_that_are_missing_or_damaged_are_told_in_a_line(tmp_path, capsys):
    folder = write(tmp_path / "marian", model(), named=False)

    def said(source, *settings):
        out = ["--output", str(tmp_path / "run")]
        assert import_run.main(["marian_npz", str(source), *settings, *out]) == 2
        return capsys.readouterr().err

    assert "vocabs=[SOURCE,TARGET] does" in said(folder)
    assert "gone.yml is missing" in said(folder, "vocabs=[gone.yml,gone.yml]")
    vocabulary = folder / "vocab.yml"
    both = f"vocabs=[{vocabulary},{vocabulary}]"
    vocabulary.write_text("a: 0\n", encoding="utf-8")
    assert "has no </s>" in said(folder, both)
    vocabulary.write_text("a: [\n", encoding="utf-8")
    assert "is damaged" in said(folder, both)
    (folder / "model.npz.best-bleu.npz").write_bytes(b"PK")
    assert "has model.npz, model.npz.best-bleu.npz; give the file" in said(folder, both)
    assert "is damaged" in said(folder / "model.npz.best-bleu.npz", both)
    (folder / "model.bin").write_bytes(b"")
    assert "give the .npz" in said(folder / "model.bin")
    numpy.savez(folder / "other.npz", x=numpy.ones(1))
    assert "it has no special:model.yml" in said(folder / "other.npz")
