"""Noise that pre-training learns to undo: masking, infilling, deletion, shuffling, span corruption.

All functions take the ids of one sentence, without `</s>`, and a generator of random numbers. The
generator of `generator` depends on seed, epoch and sentence alone, so that a sentence has new noise in each
epoch and a resumed run the noise of one that was never interrupted.
"""

from __future__ import annotations

import math

import numpy as np

from mtplug.data.tokenizers import PAD


def generator(seed: int, epoch: int, sentence: int) -> np.random.Generator:
    """Random numbers for one sentence in one epoch."""
    return np.random.default_rng([seed, epoch, sentence])


def mask(
    ids: np.ndarray,
    rng: np.random.Generator,
    mask_id: int,
    ordinary: np.ndarray,
    share: float = 0.15,
    starts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Masked language modelling (Devlin et al. 2019, section 3.1).

    Of the tokens, `share` are chosen; 80 % of these become `mask_id`, 10 % another token, and 10 % stay.

    Args:
        ordinary: ids that a token may be replaced with.
        starts: (n,) bool, whether a token begins a word: then whole words are chosen.

    Returns:
        (n,) input, and (n,) the chosen tokens with padding elsewhere.
    """
    count = _rounded(share * len(ids), rng)
    words = np.arange(len(ids)) if starts is None else np.maximum(np.cumsum(starts) - 1, 0)
    chosen = np.zeros(len(ids), bool)
    for word in rng.permutation(words.max() + 1):
        here = words == word
        if chosen.sum() + here.sum() <= count or not chosen.any():
            chosen |= here
        if chosen.sum() >= count:
            break
    draw = rng.random(len(ids))
    changed = np.where(
        draw < 0.8, mask_id, np.where(draw < 0.9, rng.choice(ordinary, len(ids)), ids)
    )
    return np.where(chosen, changed, ids), np.where(chosen, ids, PAD)


def infill(
    ids: np.ndarray,
    rng: np.random.Generator,
    mask_id: int,
    share: float = 0.3,
    mean: float = 3.0,
    longest: float = math.inf,
) -> np.ndarray:
    """Text infilling (Lewis et al. 2020, section 2.2): spans, each become one `mask_id`.

    Lengths are Poisson(`mean`) distributed, and drawn until `share` of the tokens are covered; the last is
    cut to fit. A span of length 0 inserts a mask. Between two spans at least one token is kept.

    Args:
        longest: what comes out has no more tokens, if the sentence has not: masks are not inserted then.
    """
    left = _rounded(share * len(ids), rng)
    spans: list[int] = []
    while left:
        spans.append(min(int(rng.poisson(mean)), left))
        left -= spans[-1]
    kept = len(ids) - sum(spans)
    spans = spans[: kept + 1]  # of very short sentences, so many have room
    while len(ids) - sum(spans) + len(spans) > longest and 0 in spans:
        spans.remove(0)
    kept = len(ids) - sum(spans)
    places = np.sort(rng.choice(kept + 1, len(spans), replace=False))
    pieces, start = [], 0
    for before, span in zip(np.diff(places, prepend=0), spans, strict=True):
        pieces += [ids[start : start + before], [mask_id]]
        start += before + span
    return np.concatenate([*pieces, ids[start:]]).astype(ids.dtype)


def delete(ids: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Leave out each token with probability `share` (Lewis et al. 2020, section 2.2), but not all."""
    kept = ids[rng.random(len(ids)) >= share]
    return kept if len(kept) else ids[:1]


def shuffle(ids: np.ndarray, rng: np.random.Generator, distance: float) -> np.ndarray:
    """A permutation that moves no token by more than `distance` (Lample et al. 2018, section 2.3)."""
    return ids[
        np.argsort(np.arange(len(ids)) + rng.uniform(0, distance + 1, len(ids)), kind="stable")
    ]


def corrupt_spans(
    ids: np.ndarray,
    rng: np.random.Generator,
    sentinels: np.ndarray,
    share: float = 0.15,
    mean: float = 3.0,
    longest: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Span corruption (Raffel et al. 2020, section 3.1.4).

    `share` of the tokens are cut out, in spans of `mean` on average. In the input a sentinel stands for
    each span, in the order of `sentinels`; the target is each sentinel followed by its span, and one more
    sentinel at the end. All ways to cut as many tokens into as many spans, with a token kept between
    two, are equally likely.

    Args:
        longest: tokens of the target, in which sentinels add to what was cut out: less is cut out where they
            would be more.

    Returns:
        Input and target.
    """
    # A token is kept, and the target has room for two sentinels.
    count = int(min(_rounded(share * len(ids), rng), max(min(len(ids) - 1, longest - 2), 1)))
    room = int(min(count, len(sentinels) - 1, len(ids) - count + 1, max(longest - count - 1, 1)))
    spans = min(max(round(count / mean), 1), room)
    inner = _composition(count, spans, rng)
    # At both ends nothing need be kept, as if there were one more token there that is not.
    outer = _composition(len(ids) - count + 2, spans + 1, rng)
    outer[[0, -1]] -= 1
    source, target, start = [], [], 0
    for before, span, sentinel in zip(outer, inner, sentinels, strict=False):
        source += [ids[start : start + before], [sentinel]]
        start += before + span
        target += [[sentinel], ids[start - span : start]]
    ends = [[sentinels[spans]]]
    whole = np.concatenate([*source, ids[start:]]), np.concatenate([*target, *ends])
    return whole[0].astype(ids.dtype), whole[1].astype(ids.dtype)


def _rounded(expected: float, rng: np.random.Generator) -> int:
    """A whole number with that mean, but at least 1: short sentences shall lose no more than long ones."""
    return max(int(expected + rng.random()), 1)


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of so many positive numbers, each sum equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
