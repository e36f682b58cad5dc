"""Elastic weight consolidation against its definition, and the Fisher information against closed forms."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtplug.architectures.base import Model
from mtplug.config.build import component_from_overrides
from mtplug.data.batching import Batch
from mtplug.errors import UserError
from mtplug.testing.material import MeanWords, Words, random_batch
from mtplug.training.finetune import adapt
from mtplug.training.fisher import fisher, some_sentences, write
from tests import tiny


class Task:
    def __init__(self, *pieces):
        words = Words()
        words.words = list(pieces) or words.words
        self.source_tokenizer = self.target_tokenizer = words


@pytest.fixture
def file(tmp_path):
    """Weights of a model, and random numbers as their Fisher information."""
    model = MeanWords(seed=3)
    information = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    write(tmp_path / "f.safetensors", model, information, Task(), {"run": "none"})
    return tmp_path / "f.safetensors", model, information


def ewc(path, weight=1.0, task=None):
    return component_from_overrides(
        "criteria", "ewc", [f"fisher={path}", f"weight={weight}", "smoothing=0.1"]
    ).build(task or Task())


def test_penalty_and_its_gradient_in_float64(file):
    path, old, information = file
    model = MeanWords(seed=4).double()
    penalty = ewc(path, 7).penalty(model)
    penalty.backward()
    anchors = {n: p.detach().double() for n, p in old.named_parameters()}
    expected = sum(
        (information[n].double() * (p.detach() - anchors[n]) ** 2).sum()
        for n, p in model.named_parameters()
    )
    assert penalty.item() == pytest.approx(3.5 * float(expected), rel=1e-12)
    for name, p in model.named_parameters():
        right = 7 * information[name].double() * (p.detach() - anchors[name])
        torch.testing.assert_close(p.grad, right, rtol=1e-12, atol=1e-14)


def test_it_is_added_to_the_mean_loss_of_an_update(file):
    path, _, _ = file
    model, batch = MeanWords(seed=4).eval(), random_batch()
    criterion = ewc(path, 2)
    plain = component_from_overrides("criteria", "label_smoothed_cross_entropy", ["smoothing=0.1"])
    ours, theirs = criterion(model, batch), plain.build(Task())(model, batch)
    mean = theirs.sum.item() / theirs.count + criterion.penalty(model).item()
    assert not ours.parts["penalty"].requires_grad
    penalty = ours.parts["penalty"].item() / ours.count
    assert penalty == pytest.approx(criterion.penalty(model).item())
    assert ours.sum.item() / ours.count == pytest.approx(mean, rel=1e-6)
    assert torch.equal(ours.nll, theirs.nll) and ours.count == theirs.count


def test_minimum_of_a_quadratic_loss(file):
    """a/2 · (θ − b)² + λ/2 · F (θ − θ*)² has its minimum at (a b + λ F θ*) / (a + λ F)."""
    path, old, information = file
    model = MeanWords(seed=4).double()
    criterion, a = ewc(path, 3), 0.5
    b = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        own = sum((p - b[n]).square().sum() for n, p in model.named_parameters())
        (a / 2 * own + criterion.penalty(model)).backward()
        optimizer.step()
    anchors = dict(old.named_parameters())
    for name, p in model.named_parameters():
        f = 3 * information[name].double()
        best = (a * b[name] + f * anchors[name].detach().double()) / (a + f)
        torch.testing.assert_close(p.detach(), best, atol=1e-6, rtol=0)


def test_rows_are_found_by_piece(file):
    path, old, information = file
    words = Words.words
    task = Task(*words[:3], "new", *reversed(words[3:]))
    model = MeanWords(seed=4)
    model.source = torch.nn.Embedding(len(words) + 1, 12)
    criterion = ewc(path, 2, task)
    held = {id(p): (f, anchor) for p, f, anchor in criterion._match(model)}
    f, anchor = held[id(model.source.weight)]
    assert f[3].abs().sum() == 0
    for row, word in enumerate(task.source_tokenizer.words):
        if word != "new":
            assert torch.equal(f[row], information["source.weight"][words.index(word)])
            assert torch.equal(anchor[row], old.source.weight[words.index(word)])


class Unigram(Model):
    """log p(target) = Σ log softmax(bias)[token], whatever the source."""

    def __init__(self, size):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, source_tokens, source_lengths, prev_output_tokens):
        return torch.ones(*prev_output_tokens.shape, 1, dtype=torch.float64)

    def project(self, features):
        return features * self.bias


def singles(batch: Batch):
    return (one for half in batch.halves() for one in (half.halves() if len(half) > 1 else [half]))


def test_fisher_of_a_unigram_model_is_its_closed_form():
    torch.manual_seed(1)
    model, batch = Unigram(len(Words.words)), random_batch()
    found = fisher(model, singles(batch))["bias"]
    p = model.bias.detach().softmax(0)
    rows = []
    for target, length in zip(batch.target_tokens, batch.target_lengths, strict=True):
        counts = torch.bincount(target[:length], minlength=len(p)).double()
        rows.append((counts - length * p) ** 2)  # d/db Σ (b[token] − log Σ exp b)
    torch.testing.assert_close(found, torch.stack(rows).mean(0), rtol=1e-12, atol=1e-14)


def test_fisher_is_of_the_model_without_dropout():
    model, modes = Unigram(len(Words.words)).train(), []
    model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    fisher(model, singles(random_batch()))
    assert modes and not any(modes) and model.training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ewc")
    tiny.write_corpus(made)
    tiny.train(made, "base", "training.max_updates=10", "validation.translate=false",
               "validation.best_metric=loss", "data.test=null")  # fmt: skip
    return made


def test_from_a_run_to_a_run(folder, capsys):
    from mtplug.cli.fisher import main

    assert main([str(folder / "base"), "--sentences", "20"]) == 0
    assert "the greatest mean is that of" in capsys.readouterr().out
    written = load_file(folder / "base/fisher.safetensors")
    weights = load_file(folder / "base/checkpoints/best/model.safetensors")
    assert {n[7:] for n in written if n.startswith("fisher.")} == set(weights)
    assert all(torch.equal(written[f"anchor.{n}"], w) for n, w in weights.items())
    moved = []
    for name, weight in (("free", 0), ("held", 1e4)):
        run = tiny.train(
            folder, name, f"training.init_from={folder / 'base'}", "training.max_updates=20",
            f"criterion={{name: ewc, fisher: {folder / 'base/fisher.safetensors'}, weight: {weight}}}",
            "validation.translate=false", "validation.best_metric=loss", "data.test=null", "seed=2",
        )  # fmt: skip
        after = load_file(run / "checkpoints/last/model.safetensors")
        f = {n: written[f"fisher.{n}"] for n in weights}
        moved.append(sum(float((f[n] * (after[n] - weights[n]) ** 2).sum()) for n in weights))
    assert moved[1] < 0.05 * moved[0]


def test_sentences_are_taken_one_by_one_from_many_batches(folder):
    run = tiny.trainer(folder, f"run_dir={folder / 'base'}", f"data.root={folder}", "data.test=null",
                       "training.max_updates=10", "validation.translate=false",
                       "validation.best_metric=loss")  # fmt: skip
    found = list(some_sentences(run.data, 24, each=4))
    assert len(found) == 24 and {len(b) for b in found} == {1}
    assert (
        len({int(b.ids[0]) for b in found}) == 24
        and len({int(b.target_lengths[0]) for b in found}) > 3
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "is no file; mtplug-fisher RUN makes one"),
        (lambda f: save_file({"a": torch.zeros(1)}, f), "is not what mtplug-fisher writes"),
        (
            lambda f: save_file(
                {"fisher.a": torch.zeros(1), "anchor.a": torch.zeros(1)}, f,
                {"pieces": json.dumps({"source": [], "target": [], "tables": {}})},
            ),
            "has the name and shape of one of the model",
        ),
        (
            lambda f: save_file(
                {f"{what}.rnn.weight_hh_l0": torch.zeros(2, 3) for what in ("fisher", "anchor")}, f,
                {"pieces": json.dumps({"source": [], "target": [], "tables": {}})},
            ),
            r"rnn.weight_hh_l0 is \(2, 3\) in .* ewc holds a model of the old one's sizes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(make, message, tmp_path):
    make(tmp_path / "f.safetensors")
    with pytest.raises(UserError, match=message):
        ewc(tmp_path / "f.safetensors").penalty(MeanWords())
    with pytest.raises(UserError, match="'fisher' is missing"):
        component_from_overrides("criteria", "ewc", [])


def test_what_the_model_lacks_is_told(file, tmp_path):
    """What the old task depended on was held in part, without a word."""
    information = file[2]
    kept = {
        f"{what}.{n}": v.clone() for n, v in information.items() for what in ("fisher", "anchor")
    }
    kept |= {
        f"{what}.encoder.{n}": torch.ones(2) for n in range(4) for what in ("fisher", "anchor")
    }
    pieces = json.dumps({"source": [], "target": [], "tables": {}})
    save_file(kept, tmp_path / "f.safetensors", {"pieces": pieces})
    said = r"4 tensors of .* are none of the model's: encoder.0, encoder.1, encoder.2, …"
    with pytest.warns(RuntimeWarning, match=said):
        ewc(tmp_path / "f.safetensors").penalty(MeanWords())


def test_an_adapter_has_nothing_to_hold(file):
    path, old, information = file
    names = dict(old.named_parameters())
    with pytest.raises(UserError, match="all that it would hold is frozen by peft"):
        ewc(path).penalty(adapt(MeanWords(), selected("lora", "targets=[output]"), "runs/base"))
    # Where weights of the base are trained themselves, these are held.
    model = adapt(MeanWords(seed=4), selected("bitfit"), "runs/base")
    penalty = ewc(path, 2).penalty(model)
    penalty.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            right = 2 * information[name] * (p.detach() - names[name].detach())
            torch.testing.assert_close(p.grad, right)


def selected(name, *settings):
    return component_from_overrides("peft_methods", name, list(settings))
