"""Files and folders that appear whole, and small files that are read with a word on what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtplug.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A place to write a folder, which gets its name once it is complete; after an error nothing of it is left.

    Args:
        replace: remove the one of that name then; else there must be none.
    """
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write a file, which takes that of `path` once it is complete; after an error nothing of it is left."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """A text file that is whole or not there."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """A file's content, or the names in a folder, as far as the system lets folders be opened."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file with the permissions that any new file gets; safetensors makes it for its owner only."""
    from safetensors.torch import save_file

    file.touch()  # also says what is wrong with the place in the system's words
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, metadata)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    file.chmod(mode)


def read_tensors(file: Path, advice: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is missing or damaged, with advice on what to do, or may not be read.
    """
    from safetensors.torch import load_file

    with read_by_safetensors(file, advice):
        return load_file(file)


@contextlib.contextmanager
def read_by_safetensors(file: Path, advice: str = "") -> Iterator[None]:
    """What safetensors says of a file, in our words; raises as `read_tensors`."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError:
        if file.is_file():  # which safetensors says, too, of one that it may not open
            raise UserError(
                f"{file}: you have no permission to read it; its owner can grant it: chmod +r {file}"
            ) from None
        raise UserError(f"{file} is missing" + (f"; {advice}" if advice else "")) from None
    except (SafetensorError, OSError) as error:
        raise damaged(file, error, advice) from None


def read_pickled(file: Path, advice: str = "") -> Any:
    """What torch wrote: tensors and plain values. Other pickled objects, of which loading some runs code, are not loaded.

    Raises:
        UserError: it is damaged, or holds such objects: then with advice on what to do.
    """
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file} holds a pickled {found[1]}, which is not loaded, as it could run code{advice and '; ' + advice}"
            ) from None
        raise UserError(f"{file} is no file of torch's, or cut off") from None


def finite(tensors: dict[str, Tensor], file: Path | str, advice: str = "") -> dict[str, Tensor]:
    """The same tensors, which are weights.

    Raises:
        UserError: a value is NaN or infinite.
    """
    for name, tensor in tensors.items():
        # A sum, of halves in fp32, is so too, and takes a tenth of the time of a look at each value.
        if not (tensor if tensor.is_complex() else tensor.float()).sum().isfinite():
            raise damaged(file, f"{name} has values that are NaN or infinite", advice)
    return tensors


def read_json(file: Path, advice: str, kind: type = dict) -> Any:
    """Raises `UserError`, with advice on what to do, if the file is damaged or holds no `kind`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, kind):
            raise ValueError(f"expected a {kind.__name__}, got {found!r:.20}")
    except (ValueError, RecursionError) as error:
        raise damaged(file, error, advice) from None
    return found


def damaged(file: Path | str, why: object, advice: str = "") -> UserError:
    """What is said of a file that was whole when it was written."""
    return UserError(f"{file} is damaged ({why})" + (f"; {advice}" if advice else ""))


def is_run(path: str | Path) -> bool:
    """Whether a folder is a run's."""
    return (Path(path) / "config.yaml").is_file()


def begun(run_dir: str | Path) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return any((Path(run_dir) / "checkpoints").glob("step-[0-9]*"))


def read_environment(run_dir: Path) -> dict[str, Any]:
    """`environment.json` of a run; empty where there is none."""
    file = run_dir / "environment.json"
    advice = (
        "restore it; without that file a run is read too, but its data and plugins are not checked"
    )
    if not file.is_file():
        return {}
    found = read_json(file, advice)
    for record in found.get("plugins", []):
        if not (isinstance(record, dict) and {"distribution", "name", "version"} <= record.keys()):
            raise damaged(file, "a plugin has no distribution, name or version", advice)
    return found
