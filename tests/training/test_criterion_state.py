"""A criterion that learns or remembers: trained, saved and restored with the model, and never a part of it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mtplug.config import component_from_overrides
from mtplug.config.schema import TrainingConfig
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig, Loss
from mtplug.errors import MtplugError, UserError
from mtplug.files import read_tensors
from mtplug.testing.material import MeanWords, random_batch
from mtplug.training import checkpoints as ckpt
from mtplug.training.criterion_state import saved
from mtplug.training.processes import Processes
from mtplug.training.updater import Updater
from mtplug.training.validation import reference_loss
from tests import tiny

CE = LabelSmoothedCrossEntropyConfig()
ALONE = Processes(0, 1, torch.device("cpu"))


class Weighted(nn.Module):
    """A learnt weight (Kendall et al. 2018, equation 7): s · exp(-w) + count · w, least at w = log(s / count)."""

    def __init__(self):
        super().__init__()
        self.cross_entropy = LabelSmoothedCrossEntropy(CE, None)
        self.weight = nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.eye(3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, model, batch):
        loss = self.cross_entropy(model, batch)
        if self.training:
            self.seen += 1
        own = self.weight + self.matrix.square().mean()
        return replace(loss, sum=loss.sum * torch.exp(-own) + loss.count * own)


class Remembers:
    """No module: a mean of its losses, in dictionaries and changed in place, weighs the loss."""

    def __init__(self):
        self.cross_entropy = LabelSmoothedCrossEntropy(CE, None)
        self.mean, self.calls, self.notes = torch.ones(2), 0, {}

    def __call__(self, model, batch):
        loss = self.cross_entropy(model, batch)
        if model.training:
            self.mean.lerp_(loss.sum.detach() / loss.count, 0.5)
            self.calls += 1
        return replace(loss, sum=loss.sum * self.mean.sum() / (1 + self.calls))

    def state_dict(self):
        return {"of": {"the.loss": self.mean}, "calls": self.calls, "notes": self.notes}

    def load_state_dict(self, state):
        self.mean, self.calls, self.notes = state["of"]["the.loss"], state["calls"], state["notes"]


def updater_of(criterion, optimizer="adam", *settings, model=None, **options):
    torch.manual_seed(1)
    made = component_from_overrides("optimizers", optimizer, ["lr=0.01", *settings])
    config = TrainingConfig(**{"precision": "fp32", **options})
    return Updater(model or MeanWords(), criterion, made.build, config, ALONE)


def steps(updater, numbers):
    updater.model.train()
    return [updater.step([(random_batch(), True)] * 2, n, []) for n in numbers]


def test_parameters_follow_their_gradient_and_are_clipped_with_the_models():
    updater = updater_of(Weighted(), "sgd", "momentum=0", clip_norm=1e9)
    criterion, model = updater.criterion, updater.model.eval()
    loss = criterion.cross_entropy(model, random_batch())
    own = 1 / 3  # of the matrix, weight being 0
    expected = 1 - float(loss.sum.detach()) / loss.count * math.exp(-own)
    (totals,) = steps(updater, [1])
    assert float(criterion.weight.detach()) == pytest.approx(-0.01 * expected, rel=0.05)  # dropout
    every = [*updater.model.parameters(), *criterion.parameters()]
    norm = torch.stack([p.grad.square().sum() for p in every]).sum().sqrt()
    assert totals.norm == pytest.approx(float(norm))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adafactor", "lion", "muon", "sgd"])
def test_every_optimizer_trains_them(optimizer):
    updater = updater_of(Weighted(), optimizer)
    steps(updater, [1, 2])
    for parameter, start in (
        (updater.criterion.weight, torch.zeros(())),
        (updater.criterion.matrix, torch.eye(3)),
    ):
        assert parameter.isfinite().all() and not torch.equal(parameter, start)


def state_of(criterion):
    plain, tensors = saved(criterion)
    return plain, {name: t.tolist() for name, t in tensors.items()}


@pytest.mark.parametrize(
    "options",
    [{"ema_decay": 0.5}, {"ema_decay": 0.5, "precision": "fp16"}, {"optimizer": "schedule_free"}],
)
@pytest.mark.parametrize("factory", [Weighted, Remembers])
def test_what_goes_on_from_a_checkpoint_goes_on_bit_for_bit(factory, options, tmp_path):
    whole = updater_of(factory(), **options)
    steps(whole, range(1, 4))
    plain, tensors = whole.state()
    path = ckpt.Checkpoints(tmp_path).save("step-1", whole.weights(), {"optimizer": plain}, tensors)
    steps(whole, range(4, 7))
    state, weights = ckpt.read_state(path), ckpt.read_weights(path)
    assert weights.keys() == ckpt.weights(MeanWords()).keys()
    resumed = updater_of(factory(), model=MeanWords(seed=2), **options)
    tensors = read_tensors(path / "training.safetensors")
    assert resumed.restore(weights, state["optimizer"], tensors, path) == ""
    steps(resumed, range(4, 7))
    assert state_of(resumed.criterion) == state_of(whole.criterion)
    ours, theirs = whole.weights(), resumed.weights()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_checkpoint_without_its_state_goes_on_and_says_so(optimizer):
    """Adam's moments of the model are those that were saved, by a run whose criterion had none."""
    old = updater_of(LabelSmoothedCrossEntropy(CE, None), optimizer)
    steps(old, [1, 2])
    plain, tensors = old.state()
    assert "criterion" not in plain and not any(n.startswith("criterion") for n in tensors)
    new = updater_of(Weighted(), optimizer)
    said = new.restore(old.weights(), plain, tensors, "step-2")
    assert said == "step-2 has no state of criterion Weighted, which starts afresh"
    for p, q in zip(old.model.parameters(), new.model.parameters(), strict=True):
        then, now = old.optimizer.state[p], new.optimizer.state[q]
        assert then.keys() == now.keys() and all(torch.equal(then[k], now[k]) for k in then)
    steps(new, [3])


@pytest.mark.parametrize("factory", [Weighted, Remembers])
def test_trying_a_batch_leaves_no_trace(factory):
    model = MeanWords()
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_pre_hook(lambda *_: model.calls.copy_(model.calls + 1) and None)
    updater = updater_of(factory(), model=model)
    steps(updater, [1])
    before = state_of(updater.criterion), int(model.calls)
    updater.attempt(random_batch())
    assert (state_of(updater.criterion), int(model.calls)) == before
    assert all(p.grad is None for p in updater.parameters)


def test_what_no_checkpoint_can_hold_is_told():
    criterion = Remembers()
    criterion.state_dict = lambda: {"seen": {"words": {1, 2}}}
    with pytest.raises(MtplugError, match=r"Remembers.state_dict\(\): seen/words is a set"):
        saved(criterion)
    updater = updater_of(Weighted())
    plain, tensors = updater.state()
    del tensors["criterion.matrix"]
    with pytest.raises(
        UserError, match=r"^step-2: Weighted does not take .*Missing key.*matrix.*$"
    ):
        updater.restore(updater.weights(), plain, tensors, "step-2")


def test_fsdp_is_refused():
    config, two = TrainingConfig(parallel="fsdp"), Processes(1, 2, torch.device("cpu"))
    with pytest.raises(UserError, match="criterion Weighted; set parallel=ddp"):
        Updater(MeanWords(), Weighted(), torch.optim.SGD, config, two)


PLUGIN = """
import torch
from torch import nn
import mtplug
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
class Weighted(nn.Module):
    def __init__(self, config, task):
        super().__init__()
        self.cross_entropy = LabelSmoothedCrossEntropy(config, task)
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, model, batch):
        loss = self.cross_entropy(model, batch)
        self.calls += self.training
        loss.parts = {f"part{int(self.calls) % 2}": loss.nll * 2, "weight": self.weight.detach() * loss.count}
        loss.sum = loss.sum * torch.exp(-self.weight) + loss.count * self.weight
        return loss
@mtplug.hookimpl
def register_criteria(register):
    register("weighted", Weighted, LabelSmoothedCrossEntropyConfig)
"""


def told(run):
    hidden = ("time", "tokens_per_second", "seconds_left", "seconds")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in e.items() if k not in hidden} for e in events if e["event"] == "train"
    ]


def test_a_run_that_was_cut_goes_on_with_its_criterion_and_its_sums(tmp_path):
    tiny.write_corpus(tmp_path)
    (tmp_path / "weighted.py").write_text(PLUGIN)
    options = ("criterion.name=weighted", f"--plugin={tmp_path / 'weighted.py'}", "data.test=null",
               "validation.translate=false", "validation.best_metric=loss", "training.log_every=3",
               "checkpoint.every_updates=2", "validation.every_updates=6", "data.workers=1")  # fmt: skip
    whole = tiny.train(tmp_path, "whole", *options, "training.max_updates=4")
    tiny.train(tmp_path, "parts", *options, "training.max_updates=2")
    parts = tiny.train(tmp_path, "parts", *options, "training.max_updates=4")
    for file in ("model.safetensors", "training.safetensors"):
        one, two = (read_tensors(run / "checkpoints/last" / file) for run in (whole, parts))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert one["criterion.weight"] != 0 and one["criterion.calls"] == 4
    assert told(whole) == told(parts)
    last = told(whole)[-1]
    assert last["update"] == 3 and last["parts"].keys() == {"part0", "part1", "weight"}
    assert last["parts"]["part0"] + last["parts"]["part1"] == pytest.approx(2 * last["nll"])


def test_a_loss_by_sentence_and_its_parts_are_told_by_their_own_numbers(tmp_path):
    tiny.write_corpus(tmp_path)
    settings = ("training.log_every=2", "training.accumulate=2", "data.test=null")
    trainer = tiny.trainer(tmp_path, *tiny.arguments(tmp_path, "run", *settings)[1:])
    plain, seen, events = trainer.criterion, [], []

    def by_sentence(model, batch):
        loss = plain(model, batch)
        seen.append((loss, len(batch)))
        parts = {f"kind{len(seen) // 2 % 2}": 3 * loss.nll}
        return Loss(loss.sum, len(batch), loss.nll, loss.count, parts)

    found = [
        reference_loss(trainer.model, c, trainer.task, trainer.validation.encoded, trainer.run)
        for c in (plain, by_sentence)
    ]
    assert found[0] == found[1]
    seen.clear()
    trainer.updater.objective.criterion = by_sentence
    trainer.emit = lambda kind, **values: events.append((kind, values))
    groups = trainer.groups_of_batches()
    for _ in range(4):
        trainer.step(next(groups))
    last = events[-1][1]  # of updates 3 and 4, which are calls 4 to 7
    nll = [float(loss.nll) for loss, _ in seen[4:]]
    sentences, tokens = sum(n for _, n in seen[4:]), sum(loss.count for loss, _ in seen[4:])
    assert last["nll"] == pytest.approx(sum(nll) / tokens)
    total = sum(float(loss.sum.detach()) for loss, _ in seen[4:])
    assert last["loss"] == pytest.approx(total / sentences)
    of = {0: [nll[0], nll[3]], 1: nll[1:3]}  # calls 5 to 8 divided by two are 2, 3, 3, 4
    for kind, own in of.items():
        assert last["parts"][f"kind{kind}"] == pytest.approx(3 * sum(own) / sentences)


def test_an_event_of_the_trainers_kind_with_other_content_is_the_plugins_error(tmp_path):
    tiny.write_corpus(tmp_path)
    settings = tiny.arguments(tmp_path, "run", "data.test=null")[1:]
    trainer = tiny.trainer(tmp_path, *settings)
    with pytest.raises(UserError, match=r"an event 'train' has epoch, .* this one no epoch.*parts"):
        trainer.emit("train", balance=1.0)
    trainer.emit("balance", value=1.0)


class Annealed:
    """Label smoothing that falls with the updates."""

    def __init__(self, config, task):
        self.smoothing, self.told = 0.5, []

    def begin_update(self, update):
        self.told.append(update)
        self.smoothing = 0.5 / update

    def __call__(self, model, batch):
        config = LabelSmoothedCrossEntropyConfig(smoothing=self.smoothing)
        return LabelSmoothedCrossEntropy(config, None)(model, batch)


def test_a_criterion_is_told_each_update_before_its_batches():
    updater = updater_of(Annealed(None, None))
    updater.model.eval()  # without dropout
    for update in (1, 2, 7):
        config = LabelSmoothedCrossEntropyConfig(smoothing=0.5 / update)
        truth = LabelSmoothedCrossEntropy(config, None)(updater.model, random_batch())
        found = updater.step([(random_batch(), True)] * 2, update, [])
        assert found.loss == pytest.approx(2 * truth.sum.item())
    assert updater.criterion.told == [1, 2, 7]
