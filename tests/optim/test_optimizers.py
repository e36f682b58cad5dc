"""Optimizers against the formulas of their papers, and in whole runs."""

import numpy as np
import pytest
import torch
from torch import nn

from mtplug.config.build import component_from_overrides
from mtplug.files import read_tensors
from mtplug.nn.positions import Stack
from mtplug.optim.rates import split_rates
from mtplug.optim.tables import is_table, mark_tables
from tests import tiny


def optimizer(name, parameters, *settings):
    return component_from_overrides("optimizers", name, list(settings)).build(parameters)


def descend(made, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        made.step()
    return parameter.detach().numpy()


@pytest.fixture
def start():
    rng = np.random.default_rng(1)
    return rng.normal(size=(3, 4)), rng.normal(size=(6, 3, 4))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_its_papers_algorithm(start, name):
    """Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2."""
    w, gradients = start[0].copy(), start[1]
    parameter = nn.Parameter(torch.from_numpy(start[0].copy()))
    settings = ("lr=0.1", "beta1=0.8", "beta2=0.97", "eps=0.01", "weight_decay=0.3")
    ours = descend(optimizer(name, [parameter], *settings), parameter, gradients)
    m = v = 0
    for t, g in enumerate(gradients, start=1):
        g, w = (g + 0.3 * w, w) if name == "adam" else (g, w - 0.1 * 0.3 * w)
        m, v = 0.8 * m + 0.2 * g, 0.97 * v + 0.03 * g**2
        w = w - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.97**t)) + 0.01)
    np.testing.assert_allclose(ours, w, rtol=1e-9)


ADAM = ("beta1=0.5", "beta2=0.5", "eps=0.1", "weight_decay=0.3")
SETTINGS = {
    "muon": ("momentum=0.2", "nesterov=false", "iterations=2", *ADAM),
    "adam": ADAM,
    "adamw": ADAM,
    "adafactor": ("beta2_decay=-0.1", "least_scale=0.9", "clip=3", "weight_decay=0.3"),
    "lion": ("beta1=0.1", "beta2=0.1", "weight_decay=0.3"),
    "schedule_free": ADAM,
    "sgd": ("momentum=0.2", "nesterov=true", "weight_decay=0.3"),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_setting_of_an_optimizer_reaches_it(name):
    if name == "schedule_free":
        pytest.importorskip("schedulefree", reason="extra schedulefree")
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(size=(3, 4)), 30 * rng.normal(size=(4, 3, 4))

    def trained(*settings):
        parameters = [nn.Parameter(torch.from_numpy(x.copy())) for x in (start, start[0])]
        made = optimizer(name, parameters, *settings)
        for gradient in gradients:
            parameters[1].grad = torch.from_numpy(gradient[0].copy())
            descend(made, parameters[0], [gradient])
        return torch.cat([p.detach().flatten() for p in parameters])

    plain, settings = trained(), ("lr=0.5", *SETTINGS[name])
    known = vars(component_from_overrides("optimizers", name, []).config)
    assert sorted(known) == sorted(setting.split("=")[0] for setting in settings)
    for setting in settings:
        assert not torch.equal(trained(setting), plain), setting


def test_lion_is_its_papers_algorithm(start):
    """Chen et al. 2023, algorithm 2, line by line."""
    w, gradients = start[0].copy(), start[1]
    parameter = nn.Parameter(torch.from_numpy(start[0].copy()))
    made = optimizer("lion", [parameter], "lr=0.1", "weight_decay=0.3")
    ours = descend(made, parameter, gradients)
    m = np.zeros_like(w)
    for g in gradients:
        c = 0.9 * m + 0.1 * g
        w = w - 0.1 * (np.sign(c) + 0.3 * w)
        m = 0.99 * m + 0.01 * g
    np.testing.assert_allclose(ours, w, rtol=1e-12)


def test_adafactor_is_its_papers_algorithm(start):
    """Shazeer and Stern 2018, algorithm 4, with the factors of algorithm 1."""
    w, gradients = start[0].copy(), start[1]
    parameter = nn.Parameter(torch.from_numpy(start[0].copy()))
    ours = descend(optimizer("adafactor", [parameter], "lr=0.01"), parameter, gradients)
    rms = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
    row, column, eps = np.zeros(3), np.zeros(4), np.finfo(np.float64).eps ** 2
    for t, g in enumerate(gradients, start=1):
        beta2 = 1 - t**-0.8
        row = beta2 * row + (1 - beta2) * (g**2 + eps).mean(1)
        column = beta2 * column + (1 - beta2) * (g**2 + eps).mean(0)
        u = g / np.sqrt(np.outer(row, column) / row.mean())
        w = w - max(1e-3, rms(w)) * min(0.01, t**-0.5) * u / max(1.0, rms(u))
    np.testing.assert_allclose(ours, w, rtol=1e-6)


def test_schedule_free_trains_at_y_and_tells_x(start):
    """Defazio et al. 2024, section 4: z steps, x averages z, gradients are taken between."""
    pytest.importorskip("schedulefree", reason="extra schedulefree")
    gradients = start[1]
    parameter = nn.Parameter(torch.from_numpy(start[0].copy()))
    made = optimizer("schedule_free", [parameter], "lr=0.1", "beta1=0.9", "beta2=0.98")
    np.testing.assert_array_equal(made.averaged_weights()[0].numpy(), start[0])
    descend(made, parameter, gradients)
    z = x = start[0]
    v = np.zeros_like(z)
    for t, g in enumerate(gradients, start=1):
        v = 0.98 * v + 0.02 * g**2
        z = z - 0.1 * g / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
        x = x + (z - x) / t
    np.testing.assert_allclose(parameter.detach().numpy(), 0.9 * x + 0.1 * z, rtol=1e-10)
    np.testing.assert_allclose(made.averaged_weights()[0].numpy(), x, rtol=1e-10)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.linear = nn.Linear(4, 4)
        self.output = nn.Linear(4, 9, bias=False)

    @property
    def output_weight(self):
        return self.output.weight


def test_muon_steps_matrices_and_adamw_the_rest():
    """Each half against torch's own optimizer with the same gradients."""
    torch.manual_seed(1)
    net, peer = Net(), Net()
    peer.load_state_dict(net.state_dict())
    mark_tables(net, net.output_weight)
    assert [n for n, p in net.named_parameters() if is_table(p)] == [
        "table.weight",
        "output.weight",
    ]
    ours = optimizer("muon", list(net.parameters()), "lr=0.01", "weight_decay=0.3")
    rest = [peer.table.weight, peer.linear.bias, peer.output.weight]
    theirs = [
        torch.optim.Muon([peer.linear.weight], 0.01, 0.3, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, 0.01, (0.9, 0.98), 1e-9, 0.3),
    ]
    for _ in range(3):
        for a, b in zip(net.parameters(), peer.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for made in (ours, *theirs):
            made.step()
    for (name, a), b in zip(net.named_parameters(), peer.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "name", ["learned", "t5_bias", "shaw", "transformer_xl", "deberta", "sinusoidal"]
)
def test_muon_leaves_tables_of_positions_and_vectors_to_adamw(name):
    """The biases of distances and learnt positions were orthogonalised, as if they were linear maps, and so were gains that
    are a matrix of one column."""
    built = component_from_overrides("position_encodings", name, [])
    model = nn.Module()
    model.position = built.build(Stack(dim=8, heads=2, layers=2, causal=True))
    model.linear = nn.Linear(8, 8)
    model.gain = nn.Parameter(torch.ones(8, 1))
    mark_tables(model, None)
    made = optimizer("muon", list(model.parameters()))
    adamw = {id(p) for group in made.param_groups if "betas" in group for p in group["params"]}
    muon = [n for n, p in model.named_parameters() if id(p) not in adamw]
    maps = [
        f"position.{n}.weight" for n, m in model.position.named_modules() if type(m) is nn.Linear
    ]
    assert sorted(muon) == sorted([*maps, "linear.weight"])
    assert bool(maps) == (name == "deberta")


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_muon_takes_matrices_alone_as_of_adapters_and_no_matrix_at_all(shape):
    theirs = torch.optim.Muon if len(shape) == 2 else torch.optim.AdamW
    one, peer = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    more = {"adjust_lr_fn": "match_rms_adamw"} if len(shape) == 2 else {"eps": 1e-9}
    made = [optimizer("muon", [one], "lr=0.01"), theirs([peer], 0.01, weight_decay=0, **more)]
    one.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    peer.grad = one.grad.clone()
    for each in made:
        each.step()
    assert torch.equal(one, peer)


def test_muon_heeds_the_rates_of_groups_that_were_split_off():
    """As LoRA+ has them: its parts once kept groups of their own, which no schedule reached and no checkpoint fitted."""
    net = Net()
    net.linear.weight.lr_factor = net.linear.bias.lr_factor = 16.0
    made = optimizer("muon", list(net.parameters()), "lr=0.01")
    split_rates(made)
    assert sorted(group["lr"] for group in made.param_groups) == [0.01, 0.16, 0.16]
    made.load_state_dict(made.state_dict())
    for group in made.param_groups:
        group["lr"] = 0.0 if group["lr"] == 0.16 else 0.01
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    made.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"table.weight", "output.weight"}


@pytest.mark.parametrize("name", ["muon", "schedule_free"])
def test_run_in_two_parts_ends_with_the_weights_of_one(tmp_path, name):
    if name == "schedule_free":
        pytest.importorskip("schedulefree", reason="extra schedulefree")
    tiny.write_corpus(tmp_path)
    settings = (f"optimizer={{name: {name}, lr: 1e-3}}", "lr_scheduler.name=constant", "data.test=null",
                "validation.translate=false", "validation.best_metric=loss", "validation.every_updates=3")  # fmt: skip
    whole = tiny.train(tmp_path, "whole", *settings, "training.max_updates=12")
    for updates in (6, 12):
        parts = tiny.train(tmp_path, "parts", *settings, f"training.max_updates={updates}")
    for file in ("model", "training"):
        one, two = (
            read_tensors(run / "checkpoints" / "last" / f"{file}.safetensors")
            for run in (whole, parts)
        )
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, two[key]), key


def test_averages_are_what_validates_and_is_saved(tmp_path):
    pytest.importorskip("schedulefree", reason="extra schedulefree")
    tiny.write_corpus(tmp_path)
    settings = ("optimizer={name: schedule_free, lr: 1e-2}", "logging.trackers=null")
    trainer = tiny.trainer(tmp_path, *tiny.arguments(tmp_path, "run", *settings)[1:])
    for share in trainer.groups_of_batches():
        trainer.step(share)
    raw = [p.detach().clone() for p in trainer.updater.parameters]
    averages = trainer.optimizer.averaged_weights()
    assert not all(torch.equal(a, b) for a, b in zip(raw, averages, strict=True))
    with trainer.updater.whole() as model:
        for average, p in zip(averages, model.parameters(), strict=True):
            assert torch.equal(average, p)
    for then, p in zip(raw, trainer.updater.parameters, strict=True):
        assert torch.equal(then, p)
    saved = trainer.updater.weights()
    for average, (name, _) in zip(averages, trainer.model.named_parameters(), strict=True):
        assert torch.equal(saved[name], average)
