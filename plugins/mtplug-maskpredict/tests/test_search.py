"""Mask-Predict against the paper's algorithm, one sentence and one length at a time in plain Python."""

import math

import pytest
import torch
from mtplug_maskpredict.search import MaskPredict, MaskPredictConfig, blank, least_sure
from test_model import build

import mtplug
from mtplug import testing
from mtplug.search import Ensemble
from mtplug.testing.material import TINY_TRANSFORMER, MeanWords, padded, random_batch, rows_of
from mtplug.testing.subject import Subject


def search(model, batch, **settings):
    strategy = MaskPredict(MaskPredictConfig(**settings))
    return strategy(model, batch.source_tokens, batch.source_lengths)


def by_hand(models, source, iterations, lengths, nbest=1, banned=(0, 1)):
    """[(tokens, score, token scores, log-probability of the length), …], best first."""

    def mean(logits):
        return torch.stack([x.double().softmax(-1) for x in logits]).mean(0).log()

    size = torch.tensor([len(source)])
    encoded = [m.encode(torch.tensor([source]), size)[0] for m in models]
    told = mean([m.length_logits(e, size)[0] for m, e in zip(models, encoded, strict=True)])
    most = min(len(told), 2 * len(source) + 20)
    best = sorted(range(1, most), key=lambda n: -float(told[n]))[:lengths]
    found = []
    for n in best:
        tokens, scores = [models[0].mask_id] * n, [0.0] * n
        for t in range(iterations):
            masked = sorted(range(n), key=lambda i: scores[i])[: n * (iterations - t) // iterations]
            canvas = [models[0].mask_id if i in masked else y for i, y in enumerate(tokens)] + [1]
            p = mean(
                [
                    m.project(m.decode(e, None, torch.tensor([canvas])))[0]
                    for m, e in zip(models, encoded, strict=True)
                ]
            )
            p[:, list(banned)] = -math.inf
            for i in masked:
                tokens[i] = int(p[i].argmax())
                scores[i] = float(p[i].max())
        found.append((tokens, sum(scores) / n, scores, float(told[n])))
    return sorted(found, key=lambda f: -f[1])[:nbest]


def test_schedule():
    """Of 4 and of 3 tokens in 4 iterations 4, 3, 2, 1 and 3, 2, 1, 0 are told: ⌊N · (4 - t) / 4⌋."""
    scores = torch.tensor([[-3.0, -1.0, -2.0, -0.5, 0.0], [-1.0, -1.0, -0.1, -9.0, -9.0]])
    counts = torch.tensor([4, 3])
    wanted = [
        [[0, 1, 2, 3], [0, 1, 2]],
        [[0, 1, 2], [0, 1]],
        [[0, 2], [0]],  # of equal scores the first
        [[0], []],
    ]
    for t, places in enumerate(wanted):
        masked = least_sure(scores, counts, t, 4)
        assert [row.nonzero()[:, 0].tolist() for row in masked] == places


def test_a_search_begins_with_masks_only():
    canvas, scores = blank(torch.tensor([3, 1]), 99)
    assert canvas.tolist() == [[99, 99, 99, 1], [99, 1, 0, 0]]
    assert not scores.any()


@pytest.mark.parametrize("iterations", [1, 2, 5, 20])
@pytest.mark.parametrize("count", [1, 4])
def test_it_is_the_algorithm_of_the_paper(iterations, count, monkeypatch):
    monkeypatch.setattr("mtplug_maskpredict.search.ROWS", 7)
    batch = random_batch(((5, 3), (2, 6), (4, 4), (1, 1)))
    for models in ([build(seed=3)], [build(seed=3), build("length=relative", seed=4)]):
        model = (models[0] if len(models) == 1 else Ensemble(models)).eval()
        found = search(model, batch, iterations=iterations, lengths=count, nbest=count)
        for row, hypotheses in enumerate(found):
            source = batch.source_tokens[row, : batch.source_lengths[row]].tolist()
            with torch.no_grad():
                truth = by_hand(models, source, iterations, count, count)
            assert [h.tokens for h in hypotheses] == [t[0] for t in truth]
            for h, (_, score, scores, of_length) in zip(hypotheses, truth, strict=True):
                assert h.score == pytest.approx(score, abs=1e-4) and h.finished
                assert h.token_scores == pytest.approx([*scores, of_length], abs=1e-4)


def test_one_iteration_is_the_best_token_everywhere_given_masks_only():
    model, batch = build(seed=3).eval(), random_batch()
    (found,), source = search(model, rows_of(batch, [0]), iterations=1, lengths=1), batch
    count = len(found[0].tokens)
    canvas = torch.tensor([[model.mask_id] * count + [1]])
    one = rows_of(source, [0])
    with torch.no_grad():
        logits = model.project(model(one.source_tokens, one.source_lengths, canvas))[0, :count]
    assert found[0].tokens == (logits[:, 2:].argmax(-1) + 2).tolist()


def test_a_translation_does_not_depend_on_the_batch():
    model, batch = build(seed=3).eval(), random_batch()
    tokens = [[h.tokens for h in row] for row in search(model, batch, nbest=5)]
    assert [[h.tokens for h in row] for row in search(model, batch, nbest=5)] == tokens
    turned = search(model, rows_of(batch, [2, 1, 0]), nbest=5)
    assert [[h.tokens for h in row] for row in turned][::-1] == tokens
    assert [[h.tokens for h in row] for row in search(model, padded(batch), nbest=5)] == tokens
    for row in range(3):
        alone = search(model, rows_of(batch, [row]), nbest=5)
        assert [h.tokens for h in alone[0]] == tokens[row]


def test_lengths_are_those_there_are():
    batch = random_batch()
    few = search(build("max_target_length=3").eval(), batch, lengths=9, nbest=9)
    assert [sorted(len(h.tokens) for h in row) for row in few] == [[1, 2, 3]] * 3
    short = build("position={name: learned, max_positions: 7}").eval()
    found = search(short, batch, lengths=12, nbest=12)  # `</s>` has a position too
    assert [sorted(len(h.tokens) for h in row) for row in found] == [[1, 2, 3, 4, 5, 6]] * 3
    # Of 6, 3 and 5 source tokens, `</s>` counted, half and one more, less one.
    near = search(build().eval(), batch, lengths=12, nbest=12, max_ratio=0.5, max_extra=1)
    assert [sorted(len(h.tokens) for h in row) for row in near] == [[1, 2, 3], [1], [1, 2]]


def test_padding_end_and_on_request_unknown_tokens_are_not_written():
    model, batch = build("tie_embeddings=none").eval(), random_batch()
    with torch.no_grad():  # nothing is more probable than these, whatever the features
        model.decoder_norm = torch.nn.Identity()
        model.project = lambda x: torch.tensor([9.0, 8.0, 7.0, 6.0, *[0.0] * 19]).expand(len(x), 23)
        for allowed, token in ((True, 2), (False, 3)):
            for (h,) in search(model, batch, allow_unknown=allowed):
                assert set(h.tokens) == {token}


def test_members_of_an_ensemble_may_know_other_numbers_of_lengths():
    models = [build(f"max_target_length={n}") for n in (3, 5)]
    found = search(Ensemble(models).eval(), random_batch(), lengths=9, nbest=9)
    assert [sorted(len(h.tokens) for h in row) for row in found] == [[1, 2, 3]] * 3


def test_search_keeps_its_contract():
    model = ("cmlm_transformer", *TINY_TRANSFORMER, "max_target_length=12")
    testing.check_search_strategy("mask_predict", "iterations=3", architecture=model)


def test_models_that_fill_in_no_masks_are_refused():
    with pytest.raises(mtplug.UserError, match="which MeanWords has not learnt; it goes with"):
        search(MeanWords().eval(), random_batch())
    with pytest.raises(mtplug.UserError, match="which MeanWords has not learnt"):
        search(Ensemble([build(), MeanWords()]).eval(), random_batch())


def test_settings():
    made = Subject("search_strategies", "mask_predict", ("iterations=3", "lengths=2")).build()
    assert made.config == MaskPredictConfig(3, 2) and made.width == 2
    for setting, said in (
        ("iterations=0", "iterations must be at least 1"),
        ("max_extra=-1", "max_extra must be at least 0"),
        ("nbest=6", "nbest 6: at most lengths, which is 5, is due"),
    ):
        with pytest.raises(mtplug.UserError, match=said):
            Subject("search_strategies", "mask_predict", (setting,))
