"""Several processes against one with as many times the accumulation, over gloo."""

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from mtplug.files import read_tensors
from mtplug.training.checkpoints import read_state
from mtplug.training.processes import _agreed_name
from mtplug.training.trackers import read_events
from tests import tiny

OPTIONS = ("architecture.dropout=0", "data.test=null", "data.workers=1", "training.max_updates=6",
           "training.max_tokens=160", "validation.every_updates=3", "validation.max_sentences=4",
           "checkpoint.every_updates=3", "training.log_every=1",
           # The bias of keys has a gradient of nothing but rounding errors, which Adam would make
           # into whole steps.
           "optimizer.eps=1e-3")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("parallel")
    tiny.write_corpus(made)
    return made


def together(folder, name, count, *overrides, status=0) -> str:
    """Train with `count` processes, which all exit with `status`; what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = folder / f"{name}.txt"
    place = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        tiny.forked(folder, output, name, *overrides, RANK=rank, LOCAL_RANK=rank, **place)
        for rank in range(count)
    ]
    codes = [tiny.ended(child) for child in children]
    assert codes == [status] * count, output.read_text()
    return output.read_text()


def weights(folder, name):
    return read_tensors(folder / name / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize(
    ("count", "parallel", "position"),
    [(2, "ddp", "sinusoidal"), (3, "ddp", "sinusoidal"), (2, "fsdp", "sinusoidal"), (2, "fsdp", "t5_bias")],
)  # fmt: skip
def test_gradients_of_many_processes_equal_accumulation(folder, count, parallel, position):
    """Also of a learnt table of positions: where each process has a share of it, a training failed at its start,
    when it told of it."""
    options = (*OPTIONS, f"architecture.position.name={position}")
    one_name, name = f"one-{count}-{position}", f"{parallel}-{count}-{position}"
    tiny.train(folder, one_name, *options, f"training.accumulate={count}")
    out = together(folder, name, count, *options, f"training.parallel={parallel}")
    assert out.count("model: transformer") == out.count("done: ") == 1  # one process speaks
    assert out.count("attention: ") == 1
    one, many = weights(folder, one_name), weights(folder, name)
    assert one.keys() == many.keys()
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-3, atol=2e-5)
    states = [read_state(folder / n / "checkpoints" / "last") for n in (one_name, name)]
    assert states[0]["data"] == states[1]["data"]


def test_sampled_subwords_are_the_same_for_any_number_of_processes(folder):
    """In the second epoch, too: they are drawn by seed, epoch and sentence, of which a process knows as much as another."""
    drawn = "tokenizer={name: sentencepiece, model_type: bpe, vocab_size: 60, sampling: %s}"
    options = (*OPTIONS, "training.max_tokens=1200", "training.max_updates=12")
    tiny.train(folder, "drawn-one", *options, drawn % 0.3, "training.accumulate=2")
    tiny.train(folder, "undrawn", *options, drawn % 0, "training.accumulate=2")
    together(folder, "drawn-two", 2, *options, drawn % 0.3)
    one, two, without = (weights(folder, name) for name in ("drawn-one", "drawn-two", "undrawn"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=2e-5)
    assert any(not torch.allclose(without[key], one[key], atol=1e-3) for key in one)
    states = [read_state(folder / n / "checkpoints" / "last") for n in ("drawn-one", "drawn-two")]
    assert states[0]["data"] == states[1]["data"] and states[0]["data"]["epoch"] > 1


LEARNS = """
import torch
from torch import nn
import mtplug
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
class Weighted(nn.Module):
    def __init__(self, config, task):
        super().__init__()
        self.cross_entropy = LabelSmoothedCrossEntropy(config, task)
        self.weight = nn.Parameter(torch.zeros(()))
    def forward(self, model, batch):
        loss = self.cross_entropy(model, batch)
        loss.parts = {f"kind{int(batch.ids[0]) % 3}": loss.nll}
        loss.sum = loss.sum * torch.exp(-self.weight) + loss.count * self.weight
        return loss
@mtplug.hookimpl
def register_criteria(register):
    register("weighted", Weighted, LabelSmoothedCrossEntropyConfig)
"""
"""A criterion with a parameter, and with parts that not every process has."""


def test_what_a_criterion_learns_and_tells_is_that_of_all_processes(folder):
    (folder / "weighted.py").write_text(LEARNS)
    options = (*OPTIONS, "criterion.name=weighted", f"--plugin={folder / 'weighted.py'}")
    tiny.train(folder, "learns-one", *options, "training.accumulate=2")
    together(folder, "learns-two", 2, *options)
    found = []
    for name in ("learns-one", "learns-two"):
        last = folder / name / "checkpoints" / "last" / "training.safetensors"
        events = read_events(folder / name / "metrics.jsonl")
        parts = [e["parts"] for e in events if e["event"] == "train"]
        found.append((read_tensors(last)["criterion.weight"], parts))
    (one, parts), (two, others) = found
    torch.testing.assert_close(two, one, rtol=1e-3, atol=2e-5)
    assert one != 0 and len({*map(tuple, map(sorted, parts))}) > 1
    for a, b in zip(parts, others, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    out = together(folder, "learns-cut", 2, *options, "training.parallel=fsdp", status=2)
    assert "set parallel=ddp" in out


def test_a_short_last_group_leaves_no_process_behind(folder):
    # 3 processes and groups that do not divide the epoch: several epochs pass without a hang.
    options = (*OPTIONS, "training.max_tokens=4000", "training.max_updates=5")
    together(folder, "short", 3, *options)
    assert read_state(folder / "short/checkpoints/last")["data"]["epoch"] >= 2


@pytest.mark.parametrize("hook", ["on_validation_end(trainer)", "on_update_end(trainer, update)"])
def test_one_process_that_wants_to_stop_stops_all(folder, hook):
    """Validation hooks are called in the main process only; each process may have seen something else."""
    plugin = folder / f"stopper_{hook[3:9]}.py"
    plugin.write_text(
        f"import mtplug\n@mtplug.hookimpl\ndef {hook}:\n"
        "    if trainer.update == 3 and trainer.processes.main: trainer.should_stop = 'seen'\n"
    )
    name = plugin.stem
    together(folder, name, 2, *OPTIONS, "training.max_updates=30", f"--plugin={plugin}")
    end = read_events(folder / name / "metrics.jsonl")[-1]
    assert (end["event"], end["reason"]) == ("end", "seen")
    assert read_state(folder / name / "checkpoints" / "last")["update"] in (3, 4)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_that_one_process_gets_before_the_others_ends_all_after_the_same_update(
    folder, rank
):
    plugin = folder / f"signal_{rank}.py"
    plugin.write_text(
        "import os, signal, mtplug\n@mtplug.hookimpl\ndef on_update_end(trainer, update):\n"
        f"    if update == 4 and trainer.processes.rank == {rank}: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    out = together(
        folder,
        plugin.stem,
        2,
        *OPTIONS,
        "training.max_updates=30",
        f"--plugin={plugin}",
        status=143,
    )
    assert out.count("stopped by SIGTERM") == 1
    assert read_state(folder / plugin.stem / "checkpoints" / "last")["update"] == 5


def test_a_signal_in_a_validation_does_not_wait_for_its_end(folder):
    plugin = folder / "cut.py"
    plugin.write_text(tiny.CUT_SHORT)
    options = (*OPTIONS, "validation.metrics=[{name: bleu},{name: cut}]", f"--plugin={plugin}")
    assert together(folder, "cut", 2, *options, status=143).count("stopped by SIGTERM") == 1
    state = read_state(folder / "cut" / "checkpoints" / "last")
    assert (state["update"], state["unscored"]) == (3, True)
    together(folder, "cut", 2, *options)
    events = read_events(folder / "cut" / "metrics.jsonl")
    assert [e["update"] for e in events if e["event"] == "validation"] == [3, 6]


def test_sentences_of_all_processes_are_told_when_the_loss_is_not_finite(folder):
    plugin = folder / "bomb.py"
    plugin.write_text(
        "import mtplug\n@mtplug.hookimpl\ndef on_update_end(trainer, update):\n"
        "    if update == 2 and trainer.processes.rank == 1:\n"
        "        next(trainer.model.parameters()).data.fill_(float('nan'))\n"
    )
    out = together(folder, "bomb", 2, *OPTIONS, f"--plugin={plugin}", status=1)
    (line,) = [line for line in out.splitlines() if line.startswith("mtplug-train")]
    pairs = line.split("training pairs ")[1].split(";")[0].split(", ")
    assert "update 3" in line and len(set(pairs)) == 6  # three of each


def test_an_error_of_one_process_is_told(folder):
    plugin = folder / "full.py"
    plugin.write_text(
        "import mtplug, torch\nfrom mtplug.training.updater import Updater\n"
        "real = Updater._gradients\n"
        "def gradients(self, share):\n"
        "    if self.processes.rank == 1: raise torch.OutOfMemoryError('CUDA out of memory. Tried much')\n"
        "    return real(self, share)\n"
        "Updater._gradients = gradients\n"
    )
    out = together(folder, "full", 2, *OPTIONS, f"--plugin={plugin}", status=1)
    lines = sorted(line for line in out.splitlines() if line.startswith("mtplug-train"))
    assert len(lines) == 2, out
    assert "another process has ended" in lines[0]
    assert "process 1: out of memory" in lines[1] and "training.max_tokens" in lines[1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_of_many_processes(folder, precision):
    options = (*OPTIONS, f"training.precision={precision}", "training.max_updates=3")
    tiny.train(folder, f"one-{precision}", *options, "training.accumulate=2")
    together(folder, f"two-{precision}", 2, *options)
    one, two = weights(folder, f"one-{precision}"), weights(folder, f"two-{precision}")
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-2, atol=1e-3)


# Muon numbers parameters in an order of its own.
@pytest.mark.parametrize(
    ("before", "after", "optimizer"),
    [("fsdp", "ddp", "optimizer.name=adam"), ("ddp", "fsdp", "optimizer={name: muon, lr: 1e-4}")],
)
def test_one_format_that_any_number_of_processes_goes_on_with(folder, before, after, optimizer):
    """2, 3 and 1 processes, one after another, each with as many batches to an update: 6."""

    def options(until, count, parallel):
        return (*OPTIONS, optimizer, "training.ema_decay=0.9", f"training.max_updates={until}",
                f"training.accumulate={6 // count}", f"training.parallel={parallel}")  # fmt: skip

    name = f"{before}-{after}"
    together(folder, name, 2, *options(2, 2, before))
    together(folder, name, 3, *options(4, 3, after))
    tiny.train(folder, name, *options(6, 1, after))
    whole = f"always-one-{name}"
    tiny.train(folder, whole, *options(6, 1, after))
    one, many = weights(folder, whole), weights(folder, name)
    assert one.keys() == many.keys()
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-3, atol=2e-5)
    states = [read_state(folder / n / "checkpoints" / "last")["data"] for n in (whole, name)]
    assert states[0] == states[1]


def test_an_optimizer_that_needs_whole_weights_is_given_no_shares(folder):
    plugin = folder / "whole.py"
    plugin.write_text(
        "import mtplug, torch\nclass Whole(torch.optim.SGD):\n    needs_whole_weights = True\n"
        "@mtplug.hookimpl\ndef register_optimizers(register):\n"
        "    register('whole', lambda config, parameters: Whole(list(parameters), lr=0.1))\n"
    )
    options = ("optimizer={name: whole}", f"--plugin={plugin}", "data.test=null", "data.workers=1")
    told = together(folder, "whole", 2, *options, "training.parallel=fsdp", status=2)
    assert "needs whole weights; set parallel=ddp" in told


def test_training_restarts_from_its_checkpoint_when_a_process_dies(folder):
    """With torchrun itself, and the worker that is killed kills itself: once, and in the middle."""
    killer = folder / "killer.py"
    killer.write_text(
        "import mtplug, os, signal\n@mtplug.hookimpl\ndef on_update_end(trainer, update):\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if first and update == 5 and trainer.processes.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    options = (*OPTIONS, "training.max_updates=8", "checkpoint.every_updates=2")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--max-restarts", "1",
            "-m", "mtplug.cli.train", *tiny.arguments(folder, "restarted", *options),
            "--plugin", str(killer)]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [e for e in read_events(folder / "restarted/metrics.jsonl") if e["event"] == "start"]
    assert [e["update"] for e in told] == [0, 4]  # where it began, and where it went on
    tiny.train(folder, "undisturbed", *options, "training.accumulate=2")
    one, two = weights(folder, "undisturbed"), weights(folder, "restarted")
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=2e-5)


def test_processes_that_start_again_agree_on_a_new_name():
    """The store of torchrun outlives its processes: what an earlier start wrote must not be taken for
    an answer of this one, whoever comes first."""
    store = dist.HashStore()
    names = []
    for late in (0, 2, 0, 1):
        with ThreadPoolExecutor(3) as pool:

            def meet(rank, late=late):
                time.sleep(0.05 * (rank == late))
                return _agreed_name(store, rank, 3)

            found = set(pool.map(meet, range(3)))
        assert len(found) == 1
        names += found
    assert len(set(names)) == 4
