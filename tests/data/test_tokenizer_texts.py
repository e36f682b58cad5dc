"""What a tokenizer is trained on: all text, byte for byte what it was, or a sample that every corpus has its part in."""

import collections

import pytest

from mtplug.config import load_config
from mtplug.data.tokenizer_texts import Texts
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.training.run import prepare
from tests import tiny

CORPORA = [
    [(f"a{n}", f"A{n}" if n % 5 else "") for n in range(1000)],
    [(f"b{n}", "") for n in range(300)],
    [("", ""), *((f"c{n}", f"C{n}") for n in range(3000))],
]


@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("most", [0, 8100, 10_000])
def test_all_texts_in_their_order_where_there_is_room(sides, most):
    everything = [pair[s] for corpus in CORPORA for pair in corpus for s in sides if pair[s]]
    assert len(everything) <= 8100
    assert list(Texts(CORPORA, most).of(sides)) == everything


@pytest.mark.parametrize(
    ("sides", "shares"), [((0,), (1000, 300, 3000)), ((0, 1), (1800, 300, 6000))]
)
def test_a_sample_has_its_share_of_every_corpus_and_side(sides, shares):
    texts = Texts(CORPORA, 900)
    found = list(texts.of(sides))
    assert 900 <= len(found) <= 900 + len(sides) - 1 and len(set(found)) == len(found)
    assert found == list(texts.of(sides))
    order = {text: n for n, text in enumerate(Texts(CORPORA).of(sides))}
    assert [order[text] for text in found] == sorted(order[text] for text in found)
    counts = collections.Counter(text[0] for text in found)
    for letter, share in zip("abc", shares, strict=True):
        # Hypergeometric: five standard deviations of drawing 900 (pairs of up to two texts).
        expected = 900 * share / sum(shares)
        assert abs(counts[letter] + counts[letter.upper()] - expected) < 5 * (2 * expected) ** 0.5
    # Sentences by themselves, as of pre-training, alternate: a fixed stride would see one side only.
    alone = [[pair for n in range(500) for pair in ((f"s{n}", ""), ("", f"t{n}"))]]
    sides_seen = collections.Counter(text[0] for text in Texts(alone, 250).of((0, 1)))
    assert sides_seen.total() == 250 and min(sides_seen["s"], sides_seen["t"]) > 85


@pytest.fixture
def folder(tmp_path):
    """A second corpus in another language, behind one that is larger than the sample."""
    tiny.write_corpus(tmp_path)
    for file, words in (("second.xx", "zeta yota xeno"), ("second.en", "uno dos tres")):
        (tmp_path / file).write_text(f"{words}\n" * 100)
    return tmp_path


def prepared(folder, name, *settings):
    """(the tokenizer's bytes, what was reported)"""
    said = []
    several = ("data.train=[{source: train.xx, target: train.en}, {source: second.xx, target: second.en}]",
               "tokenizer={model_type: bpe, vocab_size: 60}")  # fmt: skip
    run, _ = load_config(folder / "run.yaml", tiny.arguments(folder, name, *several, *settings)[1:])
    prepare(run, said.append)
    return (folder / name / "tokenizer" / "joint.model").read_bytes(), said


def test_a_tokenizer_of_all_text_is_what_it_was_and_one_of_a_sample_knows_all_corpora(folder):
    """The first sentences were taken, so that of a later corpus' language every character was unknown."""
    pairs = [
        zip(*((folder / f"{name}.{x}").read_text().splitlines() for x in ("xx", "en")), strict=True)
        for name in ("train", "second")
    ]
    texts = [text for corpus in pairs for pair in corpus for text in pair]
    config = SentencePieceConfig(model_type="bpe", vocab_size=60, sample_size=len(texts))
    whole, _ = prepared(folder, "whole", f"tokenizer.sample_size={len(texts)}")
    assert whole == SentencePiece.train(config, texts, "joint").model

    sample, said = prepared(folder, "sample", "tokenizer.sample_size=300")
    known = set("".join(SentencePiece(sample).tokens(list(range(60)))))
    assert set("".join(texts)) - {" "} <= known
    assert not [line for line in said if "unknown" in line]


def test_an_earlier_versions_tokenizer_stays_and_text_that_it_does_not_know_is_told(folder):
    settings = ("tokenizer.sample_size=300",)
    made, _ = prepared(folder, "run", *settings)
    texts = [
        line for x in ("xx", "en") for line in (folder / f"train.{x}").read_text().splitlines()
    ]
    old = SentencePiece.train(SentencePieceConfig(model_type="bpe", vocab_size=48), texts, "joint")
    assert old.model != made
    (folder / "run" / "tokenizer" / "joint.model").write_bytes(old.model)
    (folder / "run" / "environment.json").unlink()
    (folder / "run" / "config.yaml").unlink()
    kept, said = prepared(folder, "run", *settings)
    assert kept == old.model
    ids = [i for x in ("xx", "en") for row in old.encode((folder / f"second.{x}").read_text().splitlines()) for i in row]  # fmt: skip
    share = ids.count(2) / len(ids)
    (line,) = [line for line in said if "neither read nor write" in line]
    assert "second.xx" in line and f"{share:.1%} of the tokens are unknown" in line and share > 0.01
