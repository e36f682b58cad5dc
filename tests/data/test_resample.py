"""Other subwords of the same text in each epoch, decided by seed, epoch and sentence."""

import numpy as np
import pytest

from mtplug.data.encoding import Encoding
from mtplug.data.resample import Resample
from mtplug.data.tags import Tagged
from mtplug.data.tokenizers import SentencePieceConfig, SentencePieceFactory
from mtplug.errors import UserError
from tests import tiny

LINES = tiny.pairs(60, 5)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    config = SentencePieceConfig(model_type=request.param, vocab_size=40, sampling=0.3)
    return SentencePieceFactory(config).train(texts, "joint")


def resampled(tokenizer, epoch, rows, seed=1, limit=100):
    pairs, numbers, _ = Encoding((tokenizer,) * 2, limit, "skip", keep_text=True)(LINES, 0)
    change = Resample((tokenizer, tokenizer), seed, limit)
    made = change(pairs.take(rows), numbers[rows], epoch)
    return [tuple(map(tuple, (s.tolist(), t.tolist()))) for s, t in zip(made.source.rows(), made.target.rows(), strict=True)]  # fmt: skip


def test_text_is_the_same_and_subwords_are_others(tokenizer):
    everyone = np.arange(len(LINES))
    one, two = (resampled(tokenizer, epoch, everyone) for epoch in (1, 2))
    assert [tuple(tokenizer.decode([list(s), list(t)])) for s, t in one] == LINES
    assert sum(a != b for a, b in zip(one, two, strict=True)) > len(LINES) / 4
    assert one != resampled(tokenizer, 1, everyone, seed=2)


def test_they_do_not_depend_on_the_batch(tokenizer):
    whole = resampled(tokenizer, 3, np.arange(len(LINES)))
    rows = np.array([7, 3, 50])
    assert resampled(tokenizer, 3, rows) == [whole[i] for i in rows]


def test_tag_stays_in_front(tokenizer):
    tagged = Tagged(tokenizer, ["de"])
    assert tagged.samples
    (found,) = tagged.sample(["<2de> ka lo"], [5])
    assert found[0] == 40 and tokenizer.decode([found[1:]]) == ["ka lo"]


def test_dropout_of_one_leaves_characters():
    # BPE-dropout with p = 1 leaves out every merge (Provilkov et al. 2020, section 3).
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    config = SentencePieceConfig(vocab_size=40, sampling=1.0)
    made = SentencePieceFactory(config).train(texts, "joint")
    (ids,) = made.sample(["one two"], [1])
    assert "".join(made.tokens(ids)) == "▁one▁two" and all(len(t) == 1 for t in made.tokens(ids))


def test_what_gets_too_long_keeps_its_subwords(tokenizer):
    longest = max(len(ids) for pair in LINES for ids in tokenizer.encode(list(pair)))
    found = resampled(tokenizer, 1, np.arange(len(LINES)), limit=longest)
    assert max(len(side) for pair in found for side in pair) <= longest


def test_split_is_refused(tokenizer):
    with pytest.raises(UserError, match="choose skip or truncate"):
        Encoding((tokenizer,) * 2, 10, "split", keep_text=True)
