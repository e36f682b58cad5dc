"""Ids against those written out by hand, and what is told of words that are not as they should be."""

import pickle

import numpy as np
import pytest

from mtplug import UserError, testing
from mtplug.config import component_from_overrides
from mtplug.data.tags import Tagged
from mtplug.testing.tiny import LEXICON, pairs

TEXTS = [
    "ka￨N￨low lo￨V￨low", "mi￨N￨title", "<x> ka￨V￨low", "ka mi",
    *(" ".join(f"{w}￨{'NV'[len(source) % 2]}￨low" for w in source.split()) for source, _ in pairs(60, seed=3)),
]  # fmt: skip
WORDS = ("inner.name=words", "factors=[pos, case]")
PIECES = ("inner.vocab_size=24", "factors=[pos, case]")


def made(*settings, texts=TEXTS):
    return (
        component_from_overrides("tokenizers", "factored", list(settings))
        .build()
        .train(texts, "source")
    )


def test_ids_are_those_written_out_by_hand():
    vocabulary = ("inner.user_symbols=[<x>, ka, lo, mi]", "inner.vocab_size=7")
    tokenizer = made(*WORDS, *vocabulary)
    # pieces: 0 <pad>, 1 </s>, 2 <unk>, 3 <x>, 4 ka, 5 lo, 6 mi; pos: N 1, V 2; case: low 1, title 2
    assert len(tokenizer) == 7 * 3 * 3
    known = {
        "ka￨N￨low lo￨V￨title": [4 + 7 * (1 + 3 * 1), 5 + 7 * (2 + 3 * 2)],
        "<x> we￨N￨title": [3, 2 + 7 * (1 + 3 * 2)],
        "ka we": [4, 2],
        " \tmi￨V￨low  ": [6 + 7 * (2 + 3 * 1)],
        "": [],
    }
    assert tokenizer.encode(list(known)) == list(known.values())
    ids = known["ka￨N￨low lo￨V￨title"]
    assert tokenizer.tokens([*ids, 3]) == ["ka￨N￨low", "lo￨V￨title", "<x>"]
    assert tokenizer.decode([[*ids, 1, 0]]) == ["ka lo"]
    assert tokenizer.unknown(np.array([2, 2 + 7 * 7, 4, 4 + 7 * 7, 65], np.uint16)) == 2
    assert Tagged(tokenizer, ["de", "en"]).encode(["<2en> ka￨N￨low"]) == [[64, 32]]


def test_all_pieces_of_a_word_have_its_factors_and_are_those_of_plain_text():
    for kind in ("bpe", "unigram", "char"):
        tokenizer = made(*PIECES, f"inner.model_type={kind}")
        size = len(tokenizer.inner)
        for text in TEXTS:
            (ids,) = tokenizer.encode([text])
            assert [i % size for i in ids] == tokenizer.inner.encode([tokenizer.plain(text)])[0]
        (ids,) = tokenizer.encode(["kalomi￨V￨low"])
        assert len(ids) > 1 and {i // size for i in ids} == {2 + 3 * 1}


def test_contract():
    testing.check_tokenizer("factored", "inner.vocab_size=24")
    testing.check_tokenizer("factored", *WORDS, texts=tuple(TEXTS), lossless=False)
    testing.check_tokenizer("factored", *PIECES, texts=tuple(TEXTS), lossless=False)


def test_subwords_are_sampled_and_words_keep_their_factors():
    tokenizer = made(*PIECES, "inner.sampling=0.5", "inner.vocab_size=30", texts=TEXTS)
    size, text = len(tokenizer.inner), TEXTS[5]
    rows = tokenizer.sample([text] * 20 + ["ka mi"], list(range(21)))
    assert len({tuple(row) for row in rows[:20]}) > 1
    assert rows[3] == tokenizer.sample([text], [3])[0]
    assert {tokenizer.decode([row])[0] for row in rows[:20]} == {tokenizer.plain(text)}
    assert {i // size for row in rows[:20] for i in row} == {
        i // size for i in tokenizer.encode([text])[0]
    }
    assert max(rows[20]) < size
    twice = [tokenizer.sample(["kalomi￨N￨low kalomi￨N￨low"], [seed])[0] for seed in range(9)]
    assert any(row[: len(row) // 2] != row[len(row) // 2 :] for row in twice)


@pytest.mark.parametrize(
    "text, told",
    [
        ("ka￨N￨low lo", r"'lo' has 0 factors, tokenizer\.factors names 2 \(word￨pos￨case\)"),
        ("ka￨N", "'ka￨N' has 1 factor, "),
        ("ka￨N￨low￨x", "'ka￨N￨low￨x' has 3 factors, "),
        ("ka￨￨low", "a factor is empty"),
        ("￨N￨low", "the word or a factor is empty"),
        ("ka￨N￨titel", "'ka￨N￨titel': the training text has no case 'titel'; did you mean 'title'"),
    ],
)
def test_words_that_are_not_as_they_should_be(text, told):
    with pytest.raises(UserError, match=told):
        made(*WORDS).encode(["ka￨N￨low", text])
    assert (
        made(*WORDS)
        .unfit(["ka￨N￨low", text])
        .startswith("not as tokenizer.factors says in line 2: '")
    )


def test_text_without_factors_is_taken_where_training_text_had_some():
    assert made(*WORDS).unfit(["ka￨N￨low", "ka mi"]) == ""
    told = made(*WORDS, texts=[t for t in TEXTS if t != "ka mi"]).unfit(["ka￨N￨low", "", "ka mi"])
    assert told == "without factors, which all training text had (word￨pos￨case): line 3"
    assert "cut into subwords already" in made(*WORDS).unfit(["k@@￨N￨low a￨N￨low"])


def test_settings_that_cannot_be():
    for wrong, told in (
        ("factors=[]", "name one at least"), ("factors=[a, a]", "none twice"), ("separator=' '", "no blank"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            made(wrong)
    with pytest.raises(UserError, match="bytes does not tell words apart"):
        made("inner.name=bytes", "factors=[pos, case]")
    many = [f"ka￨{n}￨{n}￨{n}" for n in range(1000)]
    with pytest.raises(
        UserError, match=r"4 pieces with 1001 × 1001 × 1001 values are 4,012,012,004 ids"
    ):
        made("inner.name=words", "factors=[a, b, c]", texts=many)


def test_another_separator_and_bars_in_text():
    tokenizer = made("inner.name=words", "factors=[pos]", "separator='|'", texts=["ka|N mi|V"])
    assert tokenizer.encode(["mi|N"]) == [[4 + 5 * 1]]
    bars = made("inner.name=words", "factors=[pos]", texts=["a|b￨N |￨V"])
    assert bars.tokens(bars.encode(["|￨N a|b￨V"])[0]) == ["|￨N", "a|b￨V"]
    assert pickle.loads(pickle.dumps(bars)).encode(["|￨N"]) == bars.encode(["|￨N"])
    assert set(LEXICON) <= set(made(*WORDS).inner.pieces)


def test_values_are_those_of_all_text_whatever_its_order(tmp_path):
    (tmp_path / "words").write_text("ka\nlo\n")
    files = f"model: {tmp_path / 'words'}, target_model: {tmp_path / 'words'}"
    given = f"inner={{name: words, joint: false, {files}}}"
    texts = [f"ka￨{n}" for n in range(50)]  # none of which has to be read for the pieces
    one, other = made(given, texts=texts), made(given, texts=texts[::-1])
    assert one.values == other.values == {"factor": sorted(map(str, range(50)))}
    with pytest.raises(
        UserError, match=r"^tokenizer\.inner\.vocab_size: 900 is more than the source text allows"
    ):
        made("inner.vocab_size=900", texts=texts)
