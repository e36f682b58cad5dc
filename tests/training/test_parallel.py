"""Several processes against one with as many times the accumulation, over gloo."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from mtplug.training.checkpoints import read_state, read_tensors
from mtplug.training.processes import _agreed_name
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


def launch(folder, name, count, *overrides, restarts=0) -> subprocess.Popen:
    """`torchrun` with `count` processes."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count),
            "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            "--max-restarts", str(restarts), "-m", "mtplug.cli.train",
            *tiny.arguments(folder, name, *overrides)]  # fmt: skip
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def weights(folder, name):
    return read_tensors(folder / name / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize(("count", "parallel"), [(2, "ddp"), (3, "ddp"), (2, "fsdp")])
def test_gradients_of_many_processes_equal_accumulation(folder, count, parallel):
    tiny.train(folder, f"one-{count}", *OPTIONS, f"training.accumulate={count}")
    name = f"{parallel}-{count}"
    out = finish(launch(folder, name, count, *OPTIONS, f"training.parallel={parallel}"))
    assert out.count("model: transformer") == 1  # one process speaks
    one, many = weights(folder, f"one-{count}"), weights(folder, name)
    assert one.keys() == many.keys()
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-3, atol=2e-5)
    states = [read_state(folder / n / "checkpoints" / "last") for n in (f"one-{count}", name)]
    assert states[0]["data"] == states[1]["data"]
    # Their checkpoints have one format: a single process goes on with that of many.
    tiny.train(folder, name, *OPTIONS, f"training.accumulate={count}", "training.max_updates=8",
               f"training.parallel={parallel}")  # fmt: skip


def test_a_short_last_group_leaves_no_process_behind(folder):
    # 3 processes and groups that do not divide the epoch: several epochs pass without a hang.
    options = (*OPTIONS, "training.max_tokens=4000", "training.max_updates=5")
    finish(launch(folder, "short", 3, *options))
    assert read_state(folder / "short/checkpoints/last")["data"]["epoch"] >= 2


def test_training_restarts_from_its_checkpoint_when_a_process_dies(folder):
    options = (*OPTIONS, "training.max_updates=40", "checkpoint.every_updates=2")
    process = launch(folder, "restarted", 2, *options, restarts=1)
    victim = None
    for _ in range(600):
        time.sleep(0.1)
        if (folder / "restarted/checkpoints/step-00000004").exists():
            found = subprocess.run(["pgrep", "-f", f"run_dir={folder}/restarted"],
                                   capture_output=True, text=True).stdout.split()  # fmt: skip
            workers = [int(p) for p in found if int(p) != process.pid and _rank(int(p)) == "1"]
            if workers:
                victim = workers[0]
                break
    assert victim, "no worker was found"
    os.kill(victim, signal.SIGKILL)
    finish(process)
    tiny.train(folder, "undisturbed", *options, "training.accumulate=2")
    one, two = weights(folder, "undisturbed"), weights(folder, "restarted")
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-2, atol=1e-3)


def _rank(pid: int) -> str:
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = dict(x.split(b"=", 1) for x in file.read().split(b"\0") if b"=" in x)
    return pairs.get(b"RANK", b"").decode()


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
