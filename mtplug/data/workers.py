"""Processes that do a part of the work each: of tokenising a corpus, of cutting a pool anew."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from mtplug.errors import MtplugError


def cores() -> int:
    """Those that this process may use, which are not all where many share a machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """This process's share of them, where `torchrun` has started several on this machine."""
    return max(cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


class Workers:
    """Processes that call one function, each with other arguments.

    They end with this object, with `close`, and with this process, however that ends. Signals that a terminal or a scheduler
    sends to them too are left to this process.

    Args:
        function: does not depend on what it was called with before, and leaves torch's devices alone.
        count: how many.
        what: they do, for messages.
    """

    def __init__(self, function: Callable, count: int, what: str):
        self.what = what
        self._connections: list[Connection] = []
        processes: list[BaseProcess] = []
        self.close = Finalize(self, _kill, (processes,), exitpriority=0)
        """End the processes at once, whatever they do; may be called by any thread, and more than once."""
        # A fork takes no time, and tokenizers of plugin files, which no other process could import, need not
        # travel. That of a process with threads and a CUDA context is safe for what is done here: a worker
        # makes no call to CUDA, and frees nothing of what it inherits. Call this from the main thread, so that
        # nobody holds a lock there at that moment which the worker would wait for.
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(function, theirs), daemon=True)
            process.start()
            theirs.close()  # or the end of a worker that dies would not be seen
            processes.append(process)
            self._connections.append(ours)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, jobs: Iterable[tuple]) -> Iterator[Any]:
        """What the function gives for the arguments of each job, in order; jobs are not taken far ahead of that.

        What the function raises is raised here.

        Raises:
            MtplugError: one of the processes died.
        """
        jobs = iter(jobs)
        free = list(self._connections)
        busy: dict[Connection, int] = {}  # the number of the job of each
        done: dict[int, Any] = {}
        given = number = 0
        try:
            while True:
                while free and given - number < 2 * len(self._connections):
                    if (job := next(jobs, None)) is None:
                        break
                    busy[free[-1]] = given
                    self._alive(free.pop().send, job)
                    given += 1
                if number in done:
                    yield done.pop(number)
                    number += 1
                elif not busy:
                    return
                ready: list[Any] = wait(list(busy), 0 if number in done else None) if busy else []
                for one in ready:
                    error, result = self._alive(one.recv)
                    if error is not None:
                        raise error from RuntimeError(f"in one of the processes:\n{result}")
                    done[busy.pop(one)] = result
                    free.append(one)
        finally:
            if busy:  # what they answer now, nobody waits for
                self.close()

    def _alive(self, talk: Callable, *given: Any) -> Any:
        try:
            return talk(*given)
        except (EOFError, OSError):
            error = MtplugError(
                f"one of {len(self._connections)} processes that {self.what} has died (killed, or out of memory); "
                "run again, perhaps with a smaller data.workers"
            )
            error.of_one_process = True
            raise error from None


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _work(function: Callable, connection: Connection) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.freeze()  # what is inherited is never freed here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the other process has ended
        while True:
            job = connection.recv()
            answer: tuple[BaseException | None, Any]
            try:
                answer = None, function(*job)
            except BaseException as error:
                answer = _portable(error), traceback.format_exc()
            connection.send(answer)


def _end_with_parent() -> None:
    """A worker of a parent that was killed would wait for work for ever, and keep a log's pipe open."""
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """An error that another process can be told of: some cannot be made again from their message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
