"""The loss against its definition, sentence by sentence in float64."""

import copy

import pytest
import torch
from mtplug_maskpredict import criterion
from mtplug_maskpredict.criterion import Cmlm, CmlmConfig, fixed_noise, uniform_mask
from test_model import build

import mtplug
from mtplug import testing
from mtplug.testing.material import (
    TINY_TRANSFORMER,
    MeanWords,
    packed,
    padded,
    random_batch,
    rows_of,
)
from mtplug.testing.subject import Subject, close, equal


def test_as_many_tokens_as_the_share_says_and_those_of_the_least_noise():
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3, 0.0], [0.2, 0.1, 0.0, 0.0, 0.0], [0.4] * 5])
    counts = torch.tensor([4, 2, 0])
    for share, wanted in (
        (0.0, [[1], [1], []]),  # one token at least
        (0.25, [[1, 3], [1], []]),  # 1 + ⌊4 / 4⌋, 1 + ⌊2 / 4⌋
        (0.5, [[0, 1, 3], [0, 1], []]),
        (0.999, [[0, 1, 2, 3], [0, 1], []]),  # all, but neither `</s>` nor padding
    ):
        masked = uniform_mask(counts, torch.full((3,), share), noise)
        assert [row.nonzero()[:, 0].tolist() for row in masked] == wanted


def test_every_number_of_masks_and_every_place_is_as_likely():
    torch.manual_seed(1)
    counts = torch.full((4000,), 4)
    masked = uniform_mask(counts, torch.rand(4000), torch.rand(4000, 6))
    assert not masked[:, 4:].any()
    numbers = masked.sum(1).bincount(minlength=5).tolist()
    assert numbers[0] == 0 and all(900 < n < 1100 for n in numbers[1:])  # 1000, 5 σ is 137
    assert all(2350 < n < 2650 for n in masked.sum(0)[:4].tolist())  # 2500


@pytest.mark.parametrize("length", ["absolute", "relative"])
def test_loss_and_gradients_are_those_of_the_definition(length, monkeypatch):
    batch = random_batch(((3, 4), (5, 1), (2, 2), (4, 0)))
    hidden = [[0, 2], [0], [], []]
    masked = torch.zeros(batch.target_tokens.shape, dtype=torch.bool)
    for row, places in enumerate(hidden):
        masked[row, places] = True
    monkeypatch.setattr(criterion, "uniform_mask", lambda *args: masked)
    model = build("dropout=0", f"length={length}").train()
    smoothing, weight = 0.1, 0.5
    loss = Cmlm(CmlmConfig(smoothing, weight), None)(model, batch)
    truth, nll = torch.zeros((), dtype=torch.float64), 0.0
    for b, places in enumerate(hidden):
        source = batch.source_tokens[b : b + 1, : batch.source_lengths[b]]
        target = batch.target_tokens[b, : batch.target_lengths[b]]
        canvas = target.clone()
        canvas[places] = model.mask_id
        memory, _ = model.encode(source, torch.tensor([source.shape[1]]))
        p = model.project(model.decode(memory, None, canvas[None]))[0].double().log_softmax(-1)
        for place in places:
            right = p[place, target[place]]
            truth += -(1 - smoothing) * right - smoothing * p[place].mean()
            nll -= right.item()
        of_length = model.length_logits(memory, torch.tensor([source.shape[1]]))[0].double()
        truth += -weight * of_length.log_softmax(-1)[len(target) - 1]
    assert loss.count == 3
    close(loss.sum.double(), truth, "loss")
    assert float(loss.nll) == pytest.approx(nll, rel=1e-5)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(truth, parameters)
    for found, wanted in zip(torch.autograd.grad(loss.sum, parameters), expected, strict=True):
        close(found, wanted, "gradients")


def test_criterion_keeps_its_contract():
    model = ("cmlm_transformer", *TINY_TRANSFORMER, "max_target_length=12")
    testing.check_criterion("cmlm", architecture=model)


def test_in_evaluation_nothing_is_drawn_and_nothing_else_decides():
    model, made, batch = build().eval(), Cmlm(CmlmConfig(), None), random_batch()
    before = torch.get_rng_state()
    loss, again = made(model, batch), made(model, batch)
    equal(torch.get_rng_state(), before, "states of torch's random numbers")
    equal(again.sum, loss.sum, "losses of two calls")
    wide = made(model, padded(batch))
    parts = [made(model, rows_of(batch, rows)) for rows in ([0], [2, 1])]
    for key in ("sum", "nll"):
        close(getattr(wide, key), getattr(loss, key), f"{key} with more padding")
        close(sum(getattr(p, key) for p in parts), getattr(loss, key), f"{key} of parts")
    assert wide.count == loss.count == sum(p.count for p in parts)


def test_fixed_noise_is_uniform_over_sentences():
    target = torch.stack([torch.randperm(500)[:9] + 3 for _ in range(2000)])
    target = torch.cat([target, torch.ones(2000, 1, dtype=torch.long)], 1)
    counts = torch.full((2000,), 9)
    masked = uniform_mask(counts, *fixed_noise(target, counts))
    assert abs(float(masked.sum(1).double().mean()) - 5) < 0.3  # of 1 … 9; 5 σ is 0.29
    assert all(950 < n < 1270 for n in masked.sum(0)[:9].tolist())  # 1111; 5 σ is 111


def test_in_training_one_seed_gives_one_mask():
    model, made, batch = build("dropout=0").train(), Cmlm(CmlmConfig(), None), random_batch()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(made(model, batch).sum.item())
    assert losses[0] == losses[1] != losses[2]


def test_a_projection_that_is_adapted_has_the_loss_of_its_logits():
    """It is no product with a weight then: a run with LoRA on the table ended with an AttributeError."""
    made, batch = Cmlm(CmlmConfig(), None), random_batch()
    plain = made(build().eval(), batch)
    method = Subject("peft_methods", "lora", ("targets=[embedding]", "rank=2")).build()
    model = method.apply(build()).eval()
    loss = made(model, batch)
    close(loss.sum, plain.sum, "loss of an adapter that changes nothing yet")
    close(loss.nll, plain.nll, "its likelihood")
    loss.sum.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_targets_beyond_the_longest_count_as_the_longest():
    model, made = build("max_target_length=2").eval(), Cmlm(CmlmConfig(length_weight=1e6), None)
    loss = made(model, random_batch(((3, 6),)))
    memory, _ = model.encode(*random_batch(((3, 6),)).inputs[:2])
    truth = -model.length_logits(memory, torch.tensor([4])).log_softmax(-1)[0, 2]
    assert loss.sum.item() / 1e6 == pytest.approx(truth.item(), rel=1e-3)


def test_what_it_cannot_do_is_refused():
    made, batch = Subject("criteria", "cmlm", ()).build(None), random_batch()
    with pytest.raises(mtplug.UserError, match="which MeanWords has not learnt"):
        made(MeanWords(), batch)
    with pytest.raises(mtplug.UserError, match=r"set training\.packing=false"):
        made(build(), packed(copy.copy(batch)))
    with pytest.raises(mtplug.UserError, match="length_weight must be at least 0"):
        Subject("criteria", "cmlm", ("length_weight=-1",))
