"""The margin against omitted tokens, computed apart sentence by sentence in float64."""

import pytest
import torch
from mtplug_contrastive import criterion
from mtplug_contrastive.criterion import Omission, OmissionConfig

import mtplug
from mtplug import testing
from mtplug.testing.material import MeanWords, random_batch


def log_prob(model, source, target):
    """log P of a sentence, `</s>` at its end, by one pass of its own."""
    prev = torch.tensor([[1, *target[:-1]]])
    features = model(torch.tensor([source]), torch.tensor([len(source)]), prev)
    p = model.project(features)[0].double().log_softmax(-1)
    return p[range(len(target)), target].sum(), p.mean(-1).sum()


@pytest.mark.parametrize("margin", [0.0, 1.0, 30.0])
def test_loss_and_gradients_are_those_of_the_definition(margin, monkeypatch):
    batch = random_batch(((3, 4), (5, 1), (2, 2), (4, 0)))
    left_out = [2, 0, 1, 0]
    monkeypatch.setattr(criterion, "draw", lambda lengths: torch.tensor(left_out))
    monkeypatch.setattr(criterion, "ROWS", 3)
    model = MeanWords().train()
    model.dropout.p = 0.0
    smoothing, weight = 0.1, 0.5
    loss = Omission(OmissionConfig(smoothing, margin, weight), None)(model, batch)
    truth = torch.zeros((), dtype=torch.float64)
    for b, position in enumerate(left_out):
        source = batch.source_tokens[b, : batch.source_lengths[b]].tolist()
        target = batch.target_tokens[b, : batch.target_lengths[b]].tolist()
        right, mean = log_prob(model, source, target)
        truth += -(1 - smoothing) * right - smoothing * mean
        if len(target) > 2:
            wrong, _ = log_prob(model, source, target[:position] + target[position + 1 :])
            truth += weight * (margin + wrong - right).clamp(min=0)
    assert loss.count == 4 + 1 + 2 + 0 + 4
    torch.testing.assert_close(loss.sum.double(), truth, rtol=1e-5, atol=1e-4)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(truth, parameters)
    for found, wanted in zip(torch.autograd.grad(loss.sum, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_every_token_but_the_end_is_left_out_at_some_time():
    lengths = torch.tensor([4] * 400 + [2] * 20 + [1])
    drawn = criterion.draw(lengths)
    assert set(drawn[:400].tolist()) == {0, 1, 2}
    assert set(drawn[400:].tolist()) == {0}


def test_shortening_keeps_the_end_and_the_order():
    target = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])
    short = criterion.shortened(target, torch.tensor([0, 1]))
    assert short.tolist() == [[6, 7, 1, 0], [8, 1, 0, 0]]
    assert criterion.shifted(short).tolist() == [[1, 6, 7, 0], [1, 8, 0, 0]]


def test_it_keeps_the_contract_of_criteria():
    testing.check_criterion("omission")


def test_a_run_trains_with_it(tmp_path):
    run = testing.train(tmp_path, "criterion.name=omission", "criterion.margin=2")
    assert len(mtplug.load(run, device="cpu").translate(["ka lo"])) == 1


def test_negative_weight_is_refused(tmp_path):
    with pytest.raises(mtplug.UserError, match="criterion: weight must not be negative"):
        testing.train(tmp_path, "criterion.name=omission", "criterion.weight=-1")


def test_packing_is_refused_under_the_name_that_a_configuration_has(tmp_path):
    with pytest.raises(mtplug.UserError, match="criterion omission takes padded batches"):
        testing.train(tmp_path, "criterion.name=omission", "training.packing=true")
