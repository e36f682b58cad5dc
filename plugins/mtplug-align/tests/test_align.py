"""The aligner against its definition, written apart pair by pair, and on a language whose alignment is known."""

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mtplug_align.aligner import DIAGONAL, DIRICHLET, ITERATIONS, NULL, learn
from mtplug_align.criterion import GuidedAlignment, GuidedAlignmentConfig
from torch import nn

import mtplug
from mtplug import testing
from mtplug.data.batching import collate, concatenate

TRANSFORMER = ("transformer", "dim=16", "heads=2", "ffn_dim=16", "decoder_layers=2")
PAIRS = [([3, 4, 5], [6, 7]), ([4, 3], [7, 8, 6]), ([5], [9]), ([4, 5, 4], [7, 9])]


def batch_of(pairs):
    return collate([(np.array(s), np.array(t)) for s, t in pairs], np.arange(len(pairs)))


def digamma(x):
    return float(torch.digamma(torch.tensor(x, dtype=torch.float64)))


def prior(source, target):
    """[target position][source position], so that each token's are 1 - NULL in all."""
    n, m = len(source), len(target)
    near = [[math.exp(-DIAGONAL * abs((j + 0.5) / m - (i + 0.5) / n)) for i in range(n)] for j in range(m)]  # fmt: skip
    return [[(1 - NULL) * x / sum(row) for x in row] for row in near]


def by_hand(pairs, size):
    """p(target token | source token) and p(target token | nothing), by loops."""
    p, null = defaultdict(lambda: 1 / size), [1 / size] * size
    for _ in range(ITERATIONS):
        counts, null_counts = defaultdict(float), [0.0] * size
        for source, target in pairs:
            for t, row in zip(target, prior(source, target), strict=True):
                share = [p[s, t] * x for s, x in zip(source, row, strict=True)]
                whole = sum(share) + NULL * null[t]
                for s, x in zip(source, share, strict=True):
                    counts[s, t] += x / whole
                null_counts[t] += NULL * null[t] / whole
        totals = defaultdict(float)
        for (s, _), x in counts.items():
            totals[s] += x
        for (s, t), x in counts.items():
            p[s, t] = math.exp(digamma(x + DIRICHLET) - digamma(totals[s] + DIRICHLET * size))
        whole = digamma(sum(null_counts) + DIRICHLET * size)
        null = [math.exp(digamma(x + DIRICHLET) - whole) for x in null_counts]
    return p, null


def posterior(p, null, source, target):
    rows = []
    for t, row in zip(target, prior(source, target), strict=True):
        share = [p[s, t] * x for s, x in zip(source, row, strict=True)]
        whole = sum(share) + NULL * max(null[t], 1e-9)
        rows.append([x / whole for x in share])
    return rows


def test_posteriors_are_those_of_the_definition_in_both_directions():
    aligner = learn([batch_of(PAIRS[:2]), batch_of(PAIRS[2:])], 10, 10, 1000)
    found = aligner(batch_of(PAIRS))
    there = by_hand(PAIRS, 10)
    back = by_hand([(t, s) for s, t in PAIRS], 10)
    for n, (source, target) in enumerate(PAIRS):
        one = torch.tensor(posterior(*there, source, target))
        two = torch.tensor(posterior(*back, target, source)).T
        truth = torch.zeros(found.shape[1:])
        truth[: len(target), : len(source)] = one * two
        truth[len(target), len(source)] = 1.0  # </s>
        torch.testing.assert_close(found[n], truth, rtol=1e-4, atol=1e-6)


def test_tokens_never_seen_are_no_one_s_and_other_sentences_change_nothing():
    aligner = learn([batch_of(PAIRS)], 12, 12, 1000)
    strange = ([3, 11], [10, 6])
    alone = aligner(batch_of([strange]))
    assert not alone[0, 0].any() and not alone[0, :, 1].any() and alone[0, 1, 0] > 0.1
    among = aligner(batch_of([*PAIRS, strange]))[-1]
    torch.testing.assert_close(among[:3, :3], alone[0])


def invented(count, rng):
    """Sentences of a language without synonyms, in which every second word changes places with the next."""
    for _ in range(count):
        source = rng.permutation(np.arange(3, 43))[: rng.integers(2, 9)]
        order = np.arange(len(source))
        order[: len(order) // 2 * 2] = order[: len(order) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
        yield source, source[order] + 40, order


def test_it_finds_the_words_of_an_invented_language():
    rng = np.random.default_rng(1)
    rows = list(invented(300, rng))
    pairs = [(s, t) for s, t, _ in rows]
    aligner = learn([batch_of(pairs[n : n + 50]) for n in range(0, 300, 50)], 90, 90, 10**6)
    fresh = list(invented(100, rng))
    right = total = 0
    for (_, _, order), found in zip(fresh, aligner(batch_of([(s, t) for s, t, _ in fresh])), strict=True):  # fmt: skip
        rows = found[: len(order), : len(order)]
        right += int((rows.argmax(1).numpy() == order).sum())
        total += len(order)
    assert right / total > 0.99


def test_it_learns_from_no_more_links_than_asked():
    batches = iter([batch_of(PAIRS[:2]), batch_of(PAIRS[2:])])
    learn(batches, 10, 10, 12)  # the first batch has 12
    assert len(list(batches)) == 1
    with pytest.raises(mtplug.UserError, match="no training pairs to align"):
        learn([], 10, 10, 12)


class Shown(nn.Module):
    """A model that shows given cross-attention."""

    output_weight, autoregressive, aligned = None, True, False

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, source_tokens, source_lengths, prev_output_tokens):
        return torch.zeros(*prev_output_tokens.shape, 10)

    def project(self, features):
        return features

    def cross_attention(self, source_tokens, source_lengths, prev_output_tokens):
        return self.weights


def criterion_of(**settings):
    sized = type("Sized", (), {"__len__": lambda self: 10})()
    task = SimpleNamespace(source_tokenizer=sized, target_tokenizer=sized)
    criterion = GuidedAlignment(GuidedAlignmentConfig(**settings), task)
    criterion.fit([batch_of(PAIRS)])
    return criterion


def test_the_loss_is_the_cross_entropy_of_attention_added_in_training_only():
    batch = batch_of(PAIRS)
    model = Shown(torch.rand(4, 4, 4).softmax(-1))
    criterion = criterion_of(weight=0.5)
    wanted = criterion.aligner(batch).double()
    truth = -0.5 * sum(
        float(wanted[b, t, s]) * math.log(model.weights[b, t, s].item())
        for b, t, s in wanted.nonzero().tolist()
    )
    plain = criterion(model.eval(), batch)
    loss = criterion(model.train(), batch)
    assert float(loss.sum.detach() - plain.sum) == pytest.approx(truth, rel=1e-4)
    assert (loss.count, float(loss.nll)) == (plain.count, float(plain.nll))
    assert float(loss.parts["alignment"]) == pytest.approx(truth / 0.5, rel=1e-4)
    (loss.sum - plain.sum).backward()
    expected = -0.5 * wanted / model.weights.detach()
    torch.testing.assert_close(model.weights.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_it_keeps_the_contract_of_criteria():
    testing.check_criterion("guided_alignment", "weight=0.1", architecture=TRANSFORMER)


def test_attention_comes_to_point_where_the_aligner_does(tmp_path):
    pairs = testing.pairs(100, seed=9)

    def disagreement(run):
        """Mean -log attention of the links that the aligner is sure of."""
        translator = mtplug.load(run, device="cpu")
        sides = translator.task.source_tokenizer, translator.task.target_tokenizer
        ids = [
            t.encode(list(texts)) for t, texts in zip(sides, zip(*pairs, strict=True), strict=True)
        ]
        batch = batch_of(list(zip(*ids, strict=True)))
        criterion = GuidedAlignment(GuidedAlignmentConfig(), translator.task)
        criterion.fit([batch])
        total = criterion.disagreement(translator.model, batch).item()
        return total / float(criterion.aligner(batch).sum())

    settings = ("criterion.name=guided_alignment", "criterion.weight=1")
    guided = testing.train(tmp_path, *settings, updates=40, name="guided")
    plain = testing.train(tmp_path, updates=40, name="plain")
    assert disagreement(guided) < 0.8 * disagreement(plain)


def test_what_it_cannot_do_is_told(tmp_path):
    with pytest.raises(mtplug.UserError, match="criterion: weight must not be negative"):
        testing.train(tmp_path, "criterion.name=guided_alignment", "criterion.weight=-1")
    with pytest.raises(mtplug.UserError, match="takes padded batches"):
        row = concatenate([(np.array(s), np.array(t)) for s, t in PAIRS], np.arange(4))
        learn([row], 10, 10, 12)
    silent = Shown(torch.ones(1, 1, 1))
    assert not GuidedAlignment.why_not(GuidedAlignmentConfig(), silent)
    silent.cross_attention = lambda *inputs: None
    reason = GuidedAlignment.why_not(GuidedAlignmentConfig(), silent)
    assert reason == "Shown has no cross-attention to guide"
