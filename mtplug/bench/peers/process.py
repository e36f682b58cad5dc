"""A peer's worker: a process that makes one round for each request."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from mtplug.bench.peers import SCRIPTS, Peer
from mtplug.errors import MtplugError


class Worker:
    """Ends with `close`.

    Attributes:
        label: name and version, as the worker found it.
        torch: the version of torch there.

    Raises:
        MtplugError: the peer cannot be built, and why. So does `ask` when a request fails.
    """

    def __init__(self, peer: Peer, python: Path, settings: dict[str, Any], limit: float = 900):
        self.peer, self.limit = peer, limit
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        hidden = ("PYTHONPATH", "PYTHONHOME")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        environment["OMP_NUM_THREADS"] = str(settings["threads"])
        self.process = subprocess.Popen(
            [str(python), str(SCRIPTS / "worker.py"), str(peer.script)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip
        try:
            found = self.ask(**settings, distribution=peer.distribution.split("==")[0])
        except MtplugError:
            self.close()
            raise
        self.label, self.torch = f"{peer.name} {found['version']}", found["torch"]

    def ask(self, **asked: Any) -> dict[str, Any]:
        """The answer, with the seconds that it took as `wall` and `cpu`."""
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self.limit, process.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, which reading tells
                print(json.dumps(asked), file=process.stdin, flush=True)
            line = process.stdout.readline()
        finally:
            timed_out = timer.finished.is_set()
            timer.cancel()
        if timed_out:
            raise MtplugError(f"{self.peer.name}: no answer after {self.limit:g} seconds")
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().decode(errors="replace").splitlines() or [""])[-1]
            raise MtplugError(
                f"{self.peer.name}: its process ended with status {process.wait()}: {last}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise MtplugError(f"{self.peer.name}: does not run here: {answer['error']}")
        return answer

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
