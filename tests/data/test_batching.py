"""Batches: what they hold, and where a sequence is cut into them."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mtplug.data.batching import (
    Batch,
    collate,
    collate_aligned,
    concatenate,
    sentences,
    token_batches,
)


def test_collate_pads_shifts_and_ends_with_eos():
    batch = collate([([5, 6], [7, 8, 9]), ([4], [3])], np.arange(2))
    assert batch.source_tokens.tolist() == [[5, 6, 1], [4, 1, 0]]
    assert batch.target_tokens.tolist() == [[7, 8, 9, 1], [3, 1, 0, 0]]
    assert batch.prev_output_tokens.tolist() == [[1, 7, 8, 9], [1, 3, 0, 0]]
    assert batch.source_lengths.tolist() == [3, 2] and batch.target_count == 6
    assert batch.padding_mask.tolist() == [[False] * 3, [False, False, True]]


def test_packed_sentences_follow_one_another():
    batch = concatenate([([5, 6], [7, 8, 9]), ([], [3]), ([4], [])], np.arange(3))
    assert batch.source_tokens.tolist() == [[5, 6, 1, 1, 4, 1]]
    assert batch.source_lengths.tolist() == [3, 1, 2]
    assert batch.target_tokens.tolist() == [[7, 8, 9, 1, 3, 1, 1]]
    assert batch.prev_output_tokens.tolist() == [[1, 7, 8, 9, 1, 3, 1]]
    assert batch.target_lengths.tolist() == [4, 2, 1] and batch.packed
    assert batch.padding_mask.tolist() == [[False] * 6]


@pytest.mark.parametrize("make", [collate, concatenate])
def test_sentences_of_a_batch_are_what_it_was_made_of(make):
    pairs = [([5, 6], [7, 8, 9]), ([4], [3]), ([], [2])]
    batch = make(pairs, np.arange(3))
    for side, name in enumerate(("source", "target")):
        assert [row.tolist() for row in sentences(batch, name)] == [pair[side] for pair in pairs]


@pytest.mark.parametrize("make", [collate, concatenate])
def test_halves_are_the_same_sentences(make):
    pairs = [([5, 6], [7, 8, 9]), ([4], [3]), ([8, 8, 8], [4, 4]), ([9], [5, 6, 7])]
    for half, part in zip(make(pairs, np.arange(4)).halves(), (pairs[:2], pairs[2:]), strict=True):
        for name, due in vars(make(part, np.arange(2))).items():
            if isinstance(due, torch.Tensor):
                assert torch.equal(getattr(half, name), due), name


def test_halves_of_labelled_sentences_keep_each_label_where_it_stands():
    texts, labels = (
        [[5, 6], [4], [7, 8, 9]],
        [[3, 0], [0, 4], [0, 5, 3, 6]],
    )  # 0: none; one more: of `</s>`
    halves = collate_aligned(texts, labels, np.arange(3)).halves()
    assert [half.ids.tolist() for half in halves] == [[0], [1, 2]]
    for half in halves:
        assert half.aligned
        for row, n in enumerate(half.ids):
            assert half.source_tokens[row].tolist() == [*texts[n], 1, 0, 0, 0][:4]
            assert half.prev_output_tokens[row].tolist() == half.source_tokens[row].tolist()
            assert half.target_tokens[row].tolist() == [*labels[n], 0, 0, 0, 0][:4]
            assert half.source_lengths[row] == len(texts[n]) + 1


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("most", [0, 4])
def test_batches_take_what_there_is_room_for_and_no_more(packing, most):
    sizes = np.random.default_rng(1).integers(1, 30, (2, 300))

    def fits(ids):
        rows = sizes[:, ids] + 1  # with `</s>`
        tokens = rows.sum(1).max() if packing else len(ids) * rows.max()
        return tokens <= 150 and len(ids) <= (most or len(ids))

    batches = token_batches(np.arange(300), *sizes, 150, packing, most)
    assert np.concatenate(batches).tolist() == list(range(300))
    for one, following in itertools.pairwise(batches):
        assert fits(one) and not fits([*one, following[0]])
    assert token_batches(np.arange(0), *sizes, 150, packing, most) == []


def test_batch_moves_its_tensors():
    batch = collate([([5], [6])], np.arange(1)).to(torch.device("meta"))
    assert batch.source_tokens.device.type == "meta" and batch.ids.tolist() == [0]


@dataclass
class WithContext(Batch):
    """What a plugin's task makes: another input for each sentence."""

    context: torch.Tensor | None = None


@pytest.mark.parametrize("make", [collate, concatenate])
def test_a_batch_with_further_inputs_keeps_them(make):
    pairs = [([5, 6], [7, 8, 9]), ([4], [3]), ([8, 8, 8], [4, 4])]
    whole = WithContext(**vars(make(pairs, np.arange(3))), context=torch.arange(6).view(3, 2))
    assert whole.to(torch.device("meta")).context.device.type == "meta"
    left, right = whole.to(torch.device("cpu")).halves()
    assert (left.context.tolist(), right.context.tolist()) == ([[0, 1]], [[2, 3], [4, 5]])
    assert right.ids.tolist() == [1, 2] and right.packed == whole.packed
