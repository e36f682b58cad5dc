"""Words cut one by one."""

import io

import pytest
import sentencepiece

from mtplug.data.byte_tokenizer import Bytes
from mtplug.data.merged_words import Words as WholeWords
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.data.words import WordByWord, separated
from mtplug.testing.material import Words
from tests import tiny

TEXTS = [text for pair in tiny.pairs(300, 0) for text in pair]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_ordinary_text_is_cut_as_by_the_tokenizer_itself(kind):
    inner = SentencePiece.train(SentencePieceConfig(kind, 40), TEXTS, "joint")
    inner = SentencePiece(inner.model, 0.3)
    made, seeds = WordByWord(inner), list(range(len(TEXTS)))
    assert made.encode(["", *TEXTS]) == inner.encode(["", *TEXTS])
    assert made.samples and made.sample(TEXTS, seeds) == inner.sample(TEXTS, seeds)
    assert made.tokens([3, 4]) == inner.tokens([3, 4]) and len(made) == len(inner)


@pytest.mark.parametrize("kind", ["bpe", "word"])
@pytest.mark.parametrize(
    "word", ["ka\u2581lo", "ka\u00a0lo", "\u2581", "\u200b", "жж", "ka\ufffdlo"]
)
def test_each_word_begins_once(kind, word):
    config = SentencePieceConfig(kind, 23 if kind == "word" else 40, normalization="nmt_nfkc")
    made = WordByWord(SentencePiece.train(config, TEXTS, "joint"))
    text = f"ka ыы {word} lo\t{word}  жж"
    (ids,), (drawn,) = made.encode([text]), made.sample([text], [1])
    assert made.starts[ids].sum() == made.starts[drawn].sum() == len(separated(text)) == 6


def test_words_that_the_tokenizer_cuts_elsewhere_stay_as_they_are():
    """Without a mark of where words begin every piece is one, which a task tells; nothing is put in their place."""

    class Letters(Words):
        words = ["<pad>", "</s>", "<unk>", *"klao"]

        def encode(self, texts):
            return super().encode([" ".join(text) for text in texts])

    assert WordByWord(Letters()).encode(["ka lo"]) == [[3, 5, 4, 6]]


def test_text_that_was_cut_is_told():
    made = WordByWord(WholeWords(["<pad>", "</s>", "<unk>", "ka"]))
    assert "cut into subwords" in made.unfit(["ka@@ lo"]) and not made.unfit(["ka lo"])


def test_words_of_bytes_begin_with_the_blank_before_them():
    """None began anywhere, so no word had a label, and training divided by their number."""
    made = WordByWord(Bytes())
    (ids,) = made.encode(["ka  \u00a0\u2581\tжж"])
    assert made.decode([ids]) == [" ka \u00a0\u2581 жж"]
    assert made.starts[ids].sum() == 3


def test_sampled_words_of_a_model_that_puts_no_blank_in_front_begin_once():
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=written, model_type="bpe", vocab_size=40, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    made = WordByWord(SentencePiece(written.getvalue(), 0.3))
    for (ids,) in (made.encode(["ka lo mi"]), made.sample(["ka lo mi"], [1])):
        assert made.starts[ids].tolist()[0] and made.starts[ids].sum() == 3
