"""Signals that end a run: behind the update that is under way, with a checkpoint, and in all of its processes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtplug.errors import MtplugError
from mtplug.training.processes import Processes


class Interrupted(MtplugError):
    """A signal ended the run, after a checkpoint."""

    def __init__(self, signum: int, path: Path):
        super().__init__(f"stopped by {signal.Signals(signum).name}; {path} is saved, run the "
                         "same command to go on")  # fmt: skip
        self.exit_status = 128 + signum


class Signals:
    """Those that a run got.

    Args:
        processes: of the run.
        last: the checkpoint that is there if a signal cuts short what is being done.

    Attributes:
        own: the signal that this process got; 0: none.
        agreed: that of any process, once all know of it: each gets it at another moment.
    """

    def __init__(self, processes: Processes, last: Path):
        self.processes, self.last = processes, last
        self.own = self.agreed = 0
        self._cutting = False

    @property
    def ending(self) -> int:
        """The signal that ends the run, the same in all processes; 0: none does."""
        return self.own if self.processes.count == 1 else self.agreed

    def agree(self, own_of_all: float) -> None:
        """Take note if any process has got one, by the sum of what is `own` to each."""
        if own_of_all:
            self.agreed = self.own or signal.SIGTERM

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Signals don't end the process for a while."""
        heard = [signal.SIGINT, signal.SIGTERM]
        if getattr(signal, "SIGHUP", None) and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            heard.append(signal.SIGHUP)  # of a terminal that was closed; nohup ignores it
        previous = {s: signal.signal(s, self._take) for s in heard}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def cutting(self) -> Iterator[None]:
        """A signal raises `Interrupted` in here: no update will end soon, and what was trained is saved, or will be."""
        self._cutting = True
        try:
            yield
        finally:
            self._cutting = False

    def _take(self, signum: int, frame: Any) -> None:
        self.own = signum
        if self._cutting:
            self._cutting = False
            raise Interrupted(signum, self.last)
