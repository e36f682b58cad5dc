"""Word-level distillation against its equation in float64, with models that share a vocabulary."""

from types import SimpleNamespace

import pytest
import torch
from mtplug_distill import criterion
from mtplug_distill.criterion import Distillation, DistillationConfig

import mtplug
from mtplug import testing
from mtplug.cli.train import main as train
from mtplug.testing.material import MeanWords, WordsTask, logits_of, random_batch


@pytest.fixture
def teacher(monkeypatch):
    """A model in the place of a run, of another size than the student."""
    model = MeanWords(seed=5, dim=20).train()
    found = SimpleNamespace(model=model, task=WordsTask())
    monkeypatch.setattr(criterion.mtplug, "load", lambda *args, **kwargs: found)
    return model


@pytest.mark.parametrize(("weight", "smoothing"), [(0.0, 0.1), (0.5, 0.0), (0.3, 0.1), (1.0, 0.1)])
@pytest.mark.parametrize("rows", [3, 1000])
def test_loss_and_gradients_are_those_of_the_equation(
    weight, smoothing, rows, teacher, monkeypatch
):
    monkeypatch.setattr(criterion, "ROWS", rows)
    config = DistillationConfig(smoothing, teacher="somewhere", weight=weight)
    made = Distillation(config, WordsTask())
    student, batch = MeanWords().train(), random_batch()
    student.dropout.p = 0.0
    loss = made(student, batch)
    # The equation, position by position; the teacher drops nothing out, whatever it was trained with.
    truth = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        q = logits_of(teacher.eval(), batch).double().softmax(-1)
    logits = logits_of(student, batch).double()
    for b, t in (batch.target_tokens != 0).nonzero().tolist():
        log_p = logits[b, t].log_softmax(-1)
        right = torch.full_like(log_p, smoothing / len(log_p))
        right[batch.target_tokens[b, t]] += 1 - smoothing
        truth -= (((1 - weight) * right + weight * q[b, t]) * log_p).sum()
    torch.testing.assert_close(loss.sum.double(), truth, rtol=1e-5, atol=1e-5)
    assert loss.count == int(batch.target_lengths.sum())
    parameters = list(student.parameters())
    expected = torch.autograd.grad(truth, parameters)
    for found, wanted in zip(torch.autograd.grad(loss.sum, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_it_keeps_the_contract_of_criteria(teacher):
    testing.check_criterion("distillation", "teacher=somewhere")


def test_a_student_of_another_size_trains_and_translates_without_its_teacher(tmp_path):
    run = testing.train(tmp_path, name="teacher")
    settings = ("criterion.name=distillation", f"criterion.teacher={run}", "architecture.dim=16")
    line = [str(tmp_path / "run.yaml"), f"data.root={tmp_path}", *settings, "--dry-run"]
    assert train(line) == 0  # of the student's vocabulary only the size is known yet
    assert train([*line, "tokenizer.vocab_size=20"]) == 2
    student = testing.train(tmp_path, *settings, "training.packing=true", name="student")
    run.rename(tmp_path / "elsewhere")
    assert len(mtplug.load(student, device="cpu").translate(["ka lo"])) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["weight=0.5"], "criterion.teacher: no run is given"),
        (["weight=2"], "weight must be from 0 to 1"),
        (["teacher={teacher}"], "criterion.teacher: .*another vocabulary"),
        (["teacher={teacher}/none"], "criterion.teacher: .*/none is no run"),
    ],
)
def test_what_cannot_teach_is_refused(tmp_path, mtplug_run, settings, message):
    settings = [f"criterion.{s.format(teacher=mtplug_run)}" for s in settings]
    with pytest.raises(mtplug.UserError, match=message):
        testing.train(tmp_path, "criterion.name=distillation", *settings, "tokenizer.vocab_size=20")
    # What needs no tokenizer is told before one is trained.
    assert (tmp_path / "run" / "tokenizer").exists() == ("vocabulary" in message)


def test_language_tags_that_the_student_lacks_are_named(tmp_path):
    """It was told to take the teacher's tokenizer, which it did."""
    teacher = testing.train(tmp_path, "task.language_tags=true", updates=2, name="teacher")
    own = ("criterion.name=distillation", f"criterion.teacher={teacher}")
    with pytest.raises(mtplug.UserError, match=r"criterion\.teacher: .*its language tags are not"):
        testing.train(tmp_path, *own, f"tokenizer.model={teacher}", name="student")
