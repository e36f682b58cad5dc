"""Long texts in pieces."""

import itertools
import random

import pytest

from mtplug.data.byte_tokenizer import Bytes
from mtplug.data.encoding import Encoding
from mtplug.data.splitting import split, truncated
from mtplug.data.tags import Tagged
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig

SENTENCES = ["ka lo mi nu pe.", '"Ru sa te vi zo?"', "Dor fel gan 3.5 hul!", "kalominu pe ru."]


@pytest.fixture(scope="module")
def tokenizer():
    """Of letters only, so that every word is of several tokens."""
    config = SentencePieceConfig(model_type="char", vocab_size=60, user_symbols=["<bt>"])
    return SentencePiece.train(config, [*SENTENCES, "你好世界。我们走吧！"] * 20, "joint")


def pieces(tokenizer, text, limit):
    (ids,) = tokenizer.encode([text])
    (found,) = split([(tokenizer, ids)], limit)
    assert [*itertools.chain(*found)] == ids and max(map(len, found)) <= limit
    return tokenizer.decode(found)


def test_texts_are_cut_behind_sentences_else_between_words(tokenizer):
    text = " ".join(SENTENCES)
    assert pieces(tokenizer, text, 48) == [" ".join(SENTENCES[:2]), " ".join(SENTENCES[2:])]
    for limit in (30, 40, 60):
        assert " ".join(pieces(tokenizer, text * 3, limit)) == text * 3  # no word is torn


def test_of_places_as_good_the_nearest_is_taken(tokenizer):
    found = pieces(tokenizer, " ".join(["ka"] * 36), 40)
    assert [len(piece.split()) for piece in found] == [9] * 4


def test_a_sentence_ends_behind_what_closes_it(tokenizer):
    """The word before stands nearer to the middle."""
    text = 'ka lo mi nu pe "sa te." ka lo mi nu pe ru'
    assert pieces(tokenizer, text, 40) == ['ka lo mi nu pe "sa te."', "ka lo mi nu pe ru"]


def test_languages_without_spaces_are_cut_behind_sentences(tokenizer):
    assert pieces(tokenizer, "你好世界你好世界。我们走吧我们走", 16) == [
        "你好世界你好世界。",
        "我们走吧我们走",
    ]


def test_characters_of_several_bytes_are_not_torn():
    config = SentencePieceConfig(model_type="char", vocab_size=262, byte_fallback=True)
    tokenizer = SentencePiece.train(config, ["ab"] * 20, "joint")
    assert "�" not in "".join(pieces(tokenizer, "世" * 40, 32))


def test_pieces_fit_whatever_the_lengths(tokenizer):
    draw = random.Random(1)
    for _ in range(200):
        limit = draw.randint(2, 40)
        sides = [[draw.randrange(3, 30) for _ in range(draw.randint(0, 150))] for _ in range(2)]
        found = split([(tokenizer, ids) for ids in sides], limit)
        assert len(found[0]) == len(found[1])
        for ids, parts in zip(sides, found, strict=True):
            assert [*itertools.chain(*parts)] == ids and max(map(len, parts)) <= limit


def test_what_tells_of_the_whole_text_stands_in_front_of_each_piece(tokenizer):
    """The prefix of a corpus was in the first piece only, and tags made pieces longer than the limit."""
    tagged = Tagged(tokenizer, ["de", "en"])
    (head,) = tokenizer.encode(["<bt>"])
    encoding = Encoding((tagged, tokenizer), 20, "split", heads=(tuple(head),))
    source = "<2de> <bt> ka lo " + SENTENCES[0] * 4
    made, numbers, counts = encoding([(source, " ".join(SENTENCES))], 1)
    assert len(made) > 3 and set(numbers.tolist()) == {1} and counts["too_long"] == 1
    tag = tagged.encode(["<2de> a"])[0][0]
    rows = [row.tolist() for row in made.source.rows()]
    for row in rows:
        assert row[: 1 + len(head)] == [tag, *head] and len(row) <= 20
    whole = tagged.encode([source])[0]
    assert [
        *whole[: 1 + len(head)],
        *itertools.chain(*(row[1 + len(head) :] for row in rows)),
    ] == whole


def test_pieces_of_which_a_side_is_empty_are_left_out(tokenizer):
    """Of a short source, which has a tag, no piece is the tag alone."""
    encoding = Encoding((Tagged(tokenizer, ["de", "en"]), tokenizer), 10, "split")
    for line in (("<2de> " + "ka lo " * 30, "pe"), ("<2de> pe", "ka lo " * 30)):
        pairs, _, _ = encoding([line], 1)
        assert len(pairs) and min(pairs.source.lengths) > 1 and min(pairs.target.lengths) > 0


def test_bytes_are_cut_between_words_too():
    """A blank at the end of a piece, or at its beginning, was not seen, and two cuts of three tore a word."""
    text = " ".join(SENTENCES)
    assert pieces(Bytes(), text, 48) == [" ".join(SENTENCES[:2]), " " + " ".join(SENTENCES[2:])]
    for limit in (30, 40, 60):
        words = [word for piece in pieces(Bytes(), text * 3, limit) for word in piece.split()]
        assert words == (text * 3).split()


class Prompted(Bytes):
    """Each text stands between ">>" and "<<"."""

    def encode(self, texts):
        return super().encode([f">>{text}<<" for text in texts])

    def frame(self, ids):
        return 2, 2


@pytest.mark.parametrize("tagged", [False, True])
def test_what_stands_around_a_text_stands_around_each_piece(tagged):
    tokenizer = Tagged(Prompted(), ["de"]) if tagged else Prompted()
    text = "<2de> one two three. four five six." if tagged else "one two three. four five six."
    (ids,) = tokenizer.encode([text])
    tag = ids[: int(tagged)]
    (pieces,) = split([(tokenizer, ids)], 24)
    assert tokenizer.decode(pieces) == [">>one two three.<<", ">> four five six.<<"]
    assert all(piece[: len(tag)] == tag for piece in pieces)
    assert tokenizer.decode([truncated(tokenizer, ids, 11 + len(tag))]) == [">>one two<<"]
    assert truncated(tokenizer, ids, 11 + len(tag))[: len(tag)] == tag
