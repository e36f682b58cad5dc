"""One update under each option, against the same update without it."""

import time

import pytest
import torch

from mtplug.cli.train import main
from mtplug.errors import MtplugError
from mtplug.files import read_tensors
from mtplug.training import checkpoints as ckpt
from mtplug.training.checkpoints import Checkpoints
from mtplug.training.precision import LossScale, autocast, resolved
from mtplug.training.trackers import read_events
from tests import tiny

STILL = ("architecture.dropout=0", "data.test=null", "data.workers=1", "logging.trackers=null")


@pytest.fixture
def folder(tmp_path):
    tiny.write_corpus(tmp_path)
    return tmp_path


def gradients(folder, name, *overrides, change=lambda trainer: None):
    trainer = tiny.trainer(
        folder, *tiny.arguments(folder, name, *STILL, "training.clip_norm=0", *overrides)[1:]
    )
    change(trainer)
    trainer.step(next(trainer.groups_of_batches()))
    return trainer, [p.grad.clone() for p in trainer.updater.parameters]


def test_activation_checkpointing_changes_no_gradient(folder):
    dropped = ("architecture.dropout=0.3",)  # the recomputation must drop the same features
    plain = gradients(folder, "plain", *dropped)[1]
    again = gradients(folder, "again", *dropped, "training.activation_checkpointing=true")[1]
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(folder):
    free = gradients(folder, "free")[1]
    norm = float(torch.stack([g.square().sum() for g in free]).sum().sqrt())
    for share in (0.25, 2):
        clipped = gradients(folder, f"to-{share}", f"training.clip_norm={share * norm}")[1]
        for a, b in zip(free, clipped, strict=True):
            torch.testing.assert_close(min(share, 1) * a, b, rtol=1e-4, atol=1e-7)


def test_the_loss_scale_of_fp16_is_taken_off_the_gradients(folder):
    def scaled(trainer):
        trainer.updater.scale.value = 64.0

    exact = gradients(folder, "exact")[1]
    rough = gradients(folder, "rough", "training.precision=fp16", change=scaled)[1]
    largest = max(float(g.abs().max()) for g in exact)
    for a, b in zip(exact, rough, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01 * largest)


def test_a_batch_that_does_not_count_leaves_no_trace(folder):
    """A process that has none left in a last group takes one along, so that all exchange as many gradients."""
    trainer, _ = gradients(folder, "run", "optimizer.lr=0", "training.accumulate=2")
    (one, _), (other, _) = next(trainer.groups_of_batches())
    alone = trainer.updater.step([(one, True)], 2, [])
    due = [p.grad.clone() for p in trainer.updater.parameters]
    beside = trainer.updater.step([(one, True), (other, False)], 3, [])
    assert beside == alone and alone.real == one.target_count
    for parameter, gradient in zip(trainer.updater.parameters, due, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_gradient_that_is_not_finite_ends_a_run_whose_loss_is(folder):
    def endless(trainer):
        next(trainer.model.parameters()).register_hook(lambda g: g * torch.inf)

    with pytest.raises(MtplugError, match="the gradient's norm is not finite"):
        gradients(folder, "run", change=endless)


def test_a_line_of_the_log_tells_of_the_updates_since_the_one_before(folder):
    """At rate zero and without dropout every number can be computed again."""
    options = (
        "optimizer.lr=0",
        "training.clip_norm=0",
        "training.log_every=3",
        "training.accumulate=2",
    )
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run", *STILL, *options)[1:])
    told = []
    trainer.emit = lambda kind, **values: told.append(values)
    batches, norms = [], []
    for share, _ in zip(trainer.groups_of_batches(), range(3), strict=False):
        trainer.step(share)
        norms.append(
            torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item()
        )
        batches += [batch for batch, _ in share]
    assert len(told) == 2  # of update 1, and of 2 and 3
    losses = [trainer.criterion(trainer.model, batch) for batch in batches[2:]]
    tokens = sum(int(batch.target_lengths.sum()) for batch in batches[2:])
    places = sum(batch.target_tokens.numel() for batch in batches[2:])
    assert 0 < tokens < places
    assert told[1]["loss"] == pytest.approx(sum(x.sum.item() for x in losses) / tokens)
    assert told[1]["nll"] == pytest.approx(sum(x.nll.item() for x in losses) / tokens)
    assert told[1]["gradient_norm"] == pytest.approx(sum(norms[1:]) / 2, rel=1e-4)
    assert told[1]["padding"] == pytest.approx(1 - tokens / places)


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_batch_that_does_not_fit_is_cut_until_it_does(folder, packing):
    calls = []

    def little_memory(trainer):
        criterion = trainer.updater.objective.criterion

        def bounded(model, batch):
            calls.append(len(batch))
            if len(batch) > 12:
                raise torch.OutOfMemoryError("no memory for so many sentences")
            return criterion(model, batch)

        trainer.updater.objective.criterion = bounded

    options = (f"training.packing={packing}", "training.accumulate=3")  # one may be small as it is
    plain = gradients(folder, "plain", *options)[1]
    trainer, cut = gradients(folder, "cut", *options, change=little_memory)
    assert trainer.updater.halved >= 2 and max(calls) > 12
    for a, b in zip(plain, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_two_sentences_that_do_not_fit_together_are_taken_one_by_one(folder):
    trainer, _ = gradients(folder, "run", "optimizer.lr=0")
    ((batch, _),) = next(trainer.groups_of_batches())
    while len(batch) > 2:
        batch = batch.halves()[0]
    whole = trainer.updater.step([(batch, True)], 2, [])
    criterion = trainer.updater.objective.criterion

    def bounded(model, batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no memory for two")
        return criterion(model, batch)

    trainer.updater.objective.criterion = bounded
    apart = trainer.updater.step([(batch, True)], 3, [])
    assert len(batch) == 2 and trainer.updater.halved == 1
    assert (apart.count, apart.real) == (whole.count, whole.real)
    assert (apart.loss, apart.norm) == pytest.approx((whole.loss, whole.norm), rel=1e-4)


def test_ema_weights_are_the_moving_average_and_are_what_is_saved(folder):
    decay = 0.25
    trainer = tiny.trainer(
        folder,
        *tiny.arguments(folder, "run", *STILL, "optimizer.lr=1", f"training.ema_decay={decay}")[1:],
    )
    expected = {k: v.clone() for k, v in ckpt.weights(trainer.model).items()}
    groups = trainer.groups_of_batches()
    for update in range(1, 4):
        trainer.step(next(groups))
        now = min(decay, (1 + update) / (10 + update))  # 2/11, 3/12, and the 0.25 asked for
        for name, value in ckpt.weights(trainer.model).items():
            expected[name] = now * expected[name] + (1 - now) * value
    path = trainer._save()
    for name, value in read_tensors(path / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name])
    raw = {k: v.clone() for k, v in ckpt.weights(trainer.model).items()}
    with trainer.updater.whole() as model:
        for name, value in ckpt.weights(model).items():
            torch.testing.assert_close(value, expected[name])
    assert all(torch.equal(v, raw[k]) for k, v in ckpt.weights(trainer.model).items())


PLATEAU = "lr_scheduler={name: plateau, patience: 2, warmup_updates: 2}"


@pytest.mark.parametrize("option", ["training.ema_decay=0.9", "training.precision=fp16", PLATEAU])
def test_resume_is_exact_with(folder, option):
    options = (
        option,
        "validation.every_updates=1",
        "data.test=null",
        "training.max_updates=9",
        "checkpoint.every_updates=4",
    )
    started = time.perf_counter()
    whole = tiny.train(folder, "whole", *options)
    tiny.train(folder, "parts", *options[:-2], "training.max_updates=4", options[-1])
    parts = tiny.train(folder, "parts", *options)
    state = ckpt.read_state(Checkpoints(parts / "checkpoints").find("last"))
    assert 0 < state["window"]["seconds"] < time.perf_counter() - started
    if option == PLATEAU:  # no BLEU yet, so that it fell before the cut and after it
        assert state["schedule"] == {"falls": 4, "waited": 0}
    for file in ("model.safetensors", "training.safetensors"):
        one, two = (read_tensors(run / "checkpoints" / "last" / file) for run in (whole, parts))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_fp16_leaves_out_updates_that_overflow_and_finds_its_scale(folder):
    options = ("training.precision=fp16", "data.test=null", "training.max_updates=6")
    assert main(tiny.arguments(folder, "run", *options)) == 0
    state = ckpt.read_state(Checkpoints(folder / "run/checkpoints").find("last"))
    events = read_events(folder / "run" / "metrics.jsonl")
    overflowed = [e["update"] for e in events if "overflowed" in e.get("text", "")]
    assert state["optimizer"]["loss_scale"] == [2.0 ** (15 - len(overflowed)), 6 - overflowed[-1]]


def test_loss_scale_halves_on_overflow_doubles_after_peace_and_gives_up():
    scale = LossScale()
    scale.adapt(overflowed=True)
    assert scale.value == 2.0**14
    for _ in range(LossScale.INTERVAL):
        scale.adapt(overflowed=False)
    assert scale.value == 2.0**15
    for _ in range(LossScale.INTERVAL - 1):
        scale.adapt(overflowed=False)
    resumed = LossScale()
    resumed.restore(scale.state())
    resumed.adapt(overflowed=False)
    assert resumed.value == 2.0**16
    resumed.restore([2.0**24, LossScale.INTERVAL - 1])
    resumed.adapt(overflowed=False)
    assert resumed.value == 2.0**24  # the most
    for overflowed in (True, False):  # there was no peace
        scale.adapt(overflowed)
    assert scale.value == 2.0**14
    with pytest.raises(Exception, match="not finite at any loss scale"):
        for _ in range(40):
            scale.adapt(overflowed=True)


@pytest.mark.parametrize(("has", "meant"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_is_bf16_where_the_processor_multiplies_it(monkeypatch, has, meant):
    """On a CPU without such instructions bf16 products are emulated: training took 60 times as long."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    device, ones = torch.device("cpu"), torch.ones(2, 2)
    assert resolved("auto", device) == meant
    assert resolved("fp16", device) == "fp16"
    with autocast(device, "auto"):
        assert (ones @ ones).dtype == (torch.bfloat16 if has else torch.float32)


@pytest.mark.parametrize(
    ("capability", "due"), [((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_gpus_from_an_a100_on_multiply_bf16(monkeypatch, capability, due):
    """V100 and T4 do not: NVIDIA's CUDA C++ Programming Guide, table of features by compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolved("auto", torch.device("cuda")) == due
