"""Other subwords of the same text in each epoch, decided by seed, epoch and sentence."""

import collections
import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest

from mtplug.data.encoding import Encoding
from mtplug.data.resample import Resample
from mtplug.data.separated import SEPARATOR, Separated
from mtplug.data.tags import Tagged
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig, SentencePieceFactory
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


@pytest.mark.parametrize("side", [0, 1])
def test_a_side_whose_tokenizer_does_not_sample_keeps_its_ids(tokenizer, side):
    plain = SentencePiece(tokenizer.model)
    pairs, numbers, _ = Encoding((tokenizer,) * 2, 100, "skip", keep_text=True)(LINES, 0)
    both = Resample((tokenizer, tokenizer), 1, 100)(pairs, numbers, 2)
    mixed = (plain, tokenizer) if side == 0 else (tokenizer, plain)
    one = Resample(mixed, 1, 100)(pairs, numbers, 2)
    kept, other = (one.source, one.target)[:: 1 if side == 0 else -1]
    assert [row.tolist() for row in kept.rows()] == plain.encode([pair[side] for pair in LINES])
    sampled = (both.target, both.source)[side]
    assert [row.tolist() for row in other.rows()] == [row.tolist() for row in sampled.rows()]


def test_they_do_not_depend_on_the_batch(tokenizer):
    whole = resampled(tokenizer, 3, np.arange(len(LINES)))
    rows = np.array([7, 3, 50])
    assert resampled(tokenizer, 3, rows) == [whole[i] for i in rows]


def test_the_same_text_is_cut_by_itself_wherever_it_stands(tokenizer):
    """On either side of a pair, and as any sentence of a document."""
    pairs, numbers, _ = Encoding((tokenizer,) * 2, 100, "skip", True)([(s, s) for s, _ in LINES], 0)
    made = Resample((tokenizer, tokenizer), 1, 100)(pairs, numbers, 1)
    sides = zip(made.source.rows(), made.target.rows(), strict=True)
    assert sum(s.tolist() != t.tolist() for s, t in sides) > len(LINES) / 4
    several = Separated(tokenizer)
    documents = several.sample([SEPARATOR.join([s, s]) for s, _ in LINES], list(range(len(LINES))))
    halves = [several.parts(row) for row in documents]
    assert sum(first != second for first, second in halves) > len(LINES) / 4


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


def test_a_restart_draws_the_same(tokenizer, tmp_path):
    """In a process of its own, as a resumed run has one."""
    tokenizer.save(tmp_path, "joint")
    texts = [source for source, _ in LINES]
    program = (
        "import sys; from mtplug.data.tokenizers import *; "
        f"made = SentencePieceFactory(SentencePieceConfig(sampling=0.3)).load(Path({str(tmp_path)!r}), 'joint'); "
        f"print(made.sample({texts!r}, list(range({len(texts)}))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == f"{tokenizer.sample(texts, list(range(len(texts))))}\n", done.stderr


def test_without_dropout_it_is_the_models_own_segmentation():
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    for kind, strength in (("bpe", 1e-12), ("unigram", 200.0)):
        config = SentencePieceConfig(model_type=kind, vocab_size=42, user_symbols=["one"])
        made = SentencePieceFactory(config).train(texts, "joint")
        odd = [*texts, "", "  two   one ", "twoone xyz ☃☃ lo", "ka☃lo"]
        rows = SentencePiece(made.model, strength).sample(odd, list(range(len(odd))))
        assert rows == made.encode(odd)


@pytest.mark.parametrize("strength", [0.05, 0.29, 0.5])
def test_words_that_are_known_are_cut_as_if_they_were_not(strength, monkeypatch):
    """`merge` is the definition; what is kept of a word changes neither its ids nor what is drawn for the next."""
    monkeypatch.setattr(
        "mtplug.data.subword_sampling._CACHED_MERGES", 7
    )  # of 22 words: it overflows, too
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    config = SentencePieceConfig(vocab_size=60, sampling=strength)
    sampler = SentencePieceFactory(config).train(texts, "joint").sampler
    words = [f"▁{word}" for text in texts for word in text.split()] + ["▁☃", "▁ka☃lo"]
    ours, theirs = random.Random(3), random.Random(3)
    for word in words[-300:] * 2:
        assert sampler.drop_merges(word, ours.random) == sampler.merge(word, theirs.random)[1]
        assert ours.getstate() == theirs.getstate()
    assert 0 < len(sampler.merged) <= 7 if strength < 0.3 else not sampler.merged
    rows = [sampler(texts, list(range(len(texts)))) for _ in range(2)]
    assert rows[0] == rows[1]


def test_segmentations_of_a_unigram_model_have_their_probabilities():
    """Kudo 2018, equation 8: P(x)^α over all ways to cut, here written out one by one."""
    texts = ["ban", "na", "an", "ana", "nab", "ba", "banan", "nana"] * 40
    config = SentencePieceConfig(model_type="unigram", vocab_size=13, sampling=0.3)
    tokenizer = SentencePieceFactory(config).train(texts, "joint")
    processor = tokenizer.processor
    score = {processor.id_to_piece(i): processor.get_score(i) for i in range(3, len(tokenizer))}
    word = "banana"
    text = "▁" + word
    ways = {}
    for cuts in itertools.product([0, 1], repeat=len(text) - 1):
        places = [0, *(n + 1 for n, cut in enumerate(cuts) if cut), len(text)]
        cut = tuple(text[a:b] for a, b in itertools.pairwise(places))
        if all(piece in score for piece in cut):
            ways[cut] = math.exp(0.3 * sum(score[piece] for piece in cut))
    rows = tokenizer.sample([word] * 20_000, list(range(20_000)))
    counts = collections.Counter(tuple(tokenizer.tokens(row)) for row in rows)
    assert set(counts) <= set(ways) and len(ways) == 8
    for cut, weight in ways.items():
        share = weight / sum(ways.values())
        spread = math.sqrt(20_000 * share * (1 - share))
        assert abs(counts[cut] - 20_000 * share) < 5 * spread + 1


def test_a_merge_is_left_out_with_its_probability():
    config = SentencePieceConfig(vocab_size=8, sampling=0.2)
    made = SentencePieceFactory(config).train(["ab ab ab ab ba"] * 20, "joint")
    assert set(made.tokens(list(range(3, 8)))) == {"▁", "a", "b", "ab", "▁ab"}
    rows = made.sample(["ab"] * 20_000, list(range(20_000)))
    counts = collections.Counter(tuple(made.tokens(row)) for row in rows)
    # ab is left out with 0.2, and then nothing is possible; ▁ab likewise, once ab is there.
    for cut, share in ((("▁", "a", "b"), 0.2), (("▁", "ab"), 0.16), (("▁ab",), 0.64)):
        assert abs(counts[cut] / 20_000 - share) < 5 * math.sqrt(share * (1 - share) / 20_000)


def test_best_segmentations_are_drawn_from():
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    config = SentencePieceConfig(
        model_type="unigram", vocab_size=40, sampling=0.1, sampling_nbest=3
    )
    made = SentencePieceFactory(config).train(texts, "joint")
    best = made.processor.nbest_encode_as_ids(texts[0], nbest_size=3)
    found = made.sample([texts[0]] * 4000, list(range(4000)))
    counts = collections.Counter(map(tuple, found))
    assert set(counts) == set(map(tuple, best))
    # Kudo 2018, section 3.3: P(x)^α over the n best, P the product of the pieces' probabilities.
    logs = {tuple(ids): sum(map(made.processor.get_score, ids)) for ids in best}
    whole = sum(math.exp(0.1 * log) for log in logs.values())
    for ids, log in logs.items():
        share = math.exp(0.1 * log) / whole
        assert abs(counts[ids] - 4000 * share) < 5 * math.sqrt(4000 * share * (1 - share))
    assert max(logs.values()) - min(logs.values()) > 1  # or any exponent would do


def test_sampling_from_whole_words_is_refused():
    config = SentencePieceConfig(model_type="word", vocab_size=20)
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    made = SentencePieceFactory(config).train(texts, "joint")
    with pytest.raises(UserError, match=r"tokenizer.sampling: the model is neither bpe nor"):
        SentencePiece(made.model, 0.1)
