"""Processes that share work: what comes back, what is told of their errors, and when they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from mtplug.data.workers import Workers, cores, own_cores
from mtplug.errors import MtplugError, UserError


class TwoWords(UserError):
    """Cannot be made again from its message alone, as pickle tries to."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def work(number):
    """Later ones are done sooner."""
    if number == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == "fail":
        raise UserError("line 7 is wrong")
    if number == "odd":
        raise TwoWords("line", "7")
    if number == "pid":
        time.sleep(0.05)
        return os.getpid()
    time.sleep(0.002 * (number % 3 == 0))
    return number * number


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_order_and_jobs_are_not_taken_far_ahead(count):
    taken = 0

    def jobs():
        nonlocal taken
        for number in range(40):
            taken += 1
            yield (number,)

    with Workers(work, count, "work") as workers:
        for _ in range(2):
            taken = 0
            for place, found in enumerate(workers.map(jobs())):
                assert found == place * place and taken - place <= 2 * count
            assert place == 39
        assert list(workers.map([])) == []
    assert not multiprocessing.active_children()


def test_all_of_them_work():
    with Workers(work, 3, "work") as workers:
        assert len(set(workers.map([("pid",)] * 9)) - {os.getpid()}) == 3


@pytest.mark.parametrize(
    ("job", "kind", "told"),
    [
        ("fail", UserError, "^line 7 is wrong$"),
        ("odd", RuntimeError, "^TwoWords: line 7$"),
        ("die", MtplugError, r"one of 2 processes that work has died \(killed, or out of memory\)"),
    ],
)
def test_an_error_is_raised_here_and_ends_them(job, kind, told):
    workers = Workers(work, 2, "work")
    with pytest.raises(kind, match=told) as caught:
        list(workers.map([(1,), (2,), (job,), *[(n,) for n in range(30)]]))
    if job == "fail":
        assert "in work" in str(caught.value.__cause__)  # the traceback there
    assert not multiprocessing.active_children()


def test_one_that_is_killed_while_it_waits_is_told():
    with Workers(work, 1, "work") as workers:
        (pid,) = workers.map([("pid",)])
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(MtplugError, match="has died"):
            list(workers.map([(1,), (2,)]))


def test_signals_are_left_to_the_process_that_has_them():
    """A terminal and a scheduler send them to all, and the training has yet to save a checkpoint."""
    with Workers(work, 1, "work") as workers:
        (pid,) = workers.map([("pid",)])
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, signum)
        assert list(workers.map([("pid",)])) == [pid]


def test_they_end_when_nobody_has_them_any_more():
    workers = Workers(work, 2, "work")
    assert list(workers.map([(3,)])) == [9] and len(multiprocessing.active_children()) == 2
    del workers
    assert not multiprocessing.active_children()


PROGRAM = """
import itertools, os, signal, sys, threading, time
from mtplug.data.workers import Workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests that a shell runs in the background inherit ignored
def forever(n):
    if n: time.sleep(600)
    return os.getpid()
workers = Workers(forever, 2, "work")
busy = threading.Thread(target=lambda: list(workers.map([(1,)] * 9)), daemon=True)
print(*workers.map([(0,)] * 2), flush=True)
busy.start()
time.sleep(0.1)
print("begun", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "signum"),
    [
        ("", 0),
        ("raise ValueError", 0),
        ("sys.exit(3)", 0),
        ("time.sleep(600)", signal.SIGINT),
        ("time.sleep(600)", signal.SIGTERM),
        ("time.sleep(600)", signal.SIGKILL),
    ],
)
def test_they_end_with_their_process_whatever_they_do(end, signum):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end=end)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    pids = process.stdout.readline().split()
    assert process.stdout.readline() == "begun\n"
    started = time.monotonic()
    if signum:
        process.send_signal(signum)
    process.stdout.read()  # until all who can write there have ended
    assert process.wait() is not None and time.monotonic() - started < 10
    assert len(pids) == 2


def test_processes_of_a_run_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert cores() == own_cores() == 12
    for count, own in (("5", 2), ("12", 1), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        assert (cores(), own_cores()) == (12, own)
