"""One process at a time writes in a run's folder."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from mtplug.errors import UserError


@contextlib.contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Make a run's folder, and keep other processes from training in it meanwhile.

    Raises:
        UserError: one does already.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("fcntl") is None:  # Windows
        yield
        return
    import fcntl

    with open(run_dir / ".lock", "a+") as file:
        try:
            # Unlike flock's, this lock is not inherited by workers, which may outlive a killed training.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"{run_dir}: another process trains there ({file.read() or 'unknown'}); wait for it to "
                    "end, or stop it, or choose another run_dir"
                ) from None
            # The file system has no locks.
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
