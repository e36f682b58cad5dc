"""Peers of a suite, as many as install and run here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mtplug.bench.peers import chosen
from mtplug.bench.peers.environment import prepare
from mtplug.bench.peers.process import Worker
from mtplug.errors import MtplugError
from mtplug.inspection import cache_dir


@contextlib.contextmanager
def started(
    names: list[str], folder: str, settings: dict[str, Any], left_out: list[str]
) -> Iterator[list[Worker]]:
    """Workers of the peers of these names, which end with the block; why one is missing is added to `left_out`.

    Args:
        names: of peers, or `all`.
        folder: of their environments; empty: a folder of the user's cache.
        settings: sizes, and the suite, for `scripts/worker.py`.

    Raises:
        UserError: there is no such peer.
    """
    home = Path(folder).expanduser() if folder else cache_dir() / "peers"
    with contextlib.ExitStack() as ends:
        workers = []
        for peer in chosen(names):
            print(f"{peer.name}: preparing", flush=True)
            try:
                python, threads = prepare(peer, home), torch.get_num_threads()
                workers.append(Worker(peer, python, {**settings, "threads": threads}))
            except MtplugError as error:
                left_out.append(str(error))
                continue
            ends.callback(workers[-1].close)
        yield workers
