"""The environment of a peer: a venv that sees the torch that runs mtplug, so that all sides compute with
one build of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from mtplug.bench.peers import Peer
from mtplug.errors import MtplugError

LIMIT = 1800  # seconds for one command: an old peer may have to be compiled


def prepare(peer: Peer, folder: Path) -> Path:
    """The Python of the peer's environment, which is made under `folder` if it isn't there.

    Raises:
        MtplugError: it does not install here, and why.
    """
    home, recipe = folder / peer.name, json.dumps(_recipe(peer))
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    made = home / "made-for.json"  # written last: without it, something went wrong before
    if made.exists() and made.read_text() == recipe and python.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(home)], peer)
    site = home / "Lib" / "site-packages"
    if os.name != "nt":
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = home / "lib" / version / "site-packages"
    # What stands in the environment itself goes before what it sees through this.
    (site / "torch_of_mtplug.pth").write_text(f"{_torch()}\n")
    constraints = home / "constraints.txt"
    constraints.write_text(f"torch=={importlib.metadata.version('torch').split('+')[0]}\n")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    _run([*pip, "-c", str(constraints), *peer.needs], peer)
    _run([*pip, "--no-deps", peer.distribution], peer)
    made.write_text(recipe)
    return python


def _recipe(peer: Peer) -> list[object]:
    version = [platform.python_version(), importlib.metadata.version("torch"), str(_torch())]
    return [peer.distribution, *peer.needs, *version]


def _torch() -> Path:
    """The folder that holds torch."""
    return Path(str(importlib.metadata.distribution("torch").locate_file(""))).resolve()


def _run(command: list[str], peer: Peer) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MtplugError(
            f"{peer.name}: does not install here: no end after {LIMIT} seconds"
        ) from None
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        why = (errors or lines or [f"status {done.returncode}"])[-1]
        raise MtplugError(f"{peer.name}: does not install here: {why}")
