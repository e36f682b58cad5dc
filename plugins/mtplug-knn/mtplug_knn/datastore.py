"""The datastore: for each target token of a corpus, the decoder's state before it was written.

Keys are what `Model.forward` gives and `Model.project` makes logits of, so every architecture has them.
(Khandelwal et al. 2021 take the input of the last feed-forward network, which only a Transformer has.)

Shapes: N target tokens, C model size, Q queries, k neighbours.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mtplug.errors import UserError

BLOCK = 65536
"""Keys added to the index at a time."""


class Datastore:
    """A datastore on disk, opened for searching.

    Args:
        folder: that `write` made.
        probes: lists that an index with inverted lists looks at; others know no such thing.

    Raises:
        UserError: the folder holds no datastore, or faiss is not installed.
    """

    def __init__(self, folder: str | Path, probes: int = 32):
        self.folder = Path(folder)
        meta = existing(self.folder) / "datastore.json"
        self.meta: dict[str, Any] = json.loads(meta.read_text(encoding="utf-8"))
        faiss = _faiss()
        self.index = faiss.read_index(str(self.folder / "index.faiss"))
        self.values = np.load(self.folder / "values.npy", mmap_mode="r")
        lists = faiss.try_extract_index_ivf(self.index)
        if lists is not None:
            lists.nprobe = probes

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, C) to squared distances (Q, k), least first, and the tokens written there (Q, k).

        Where the index finds fewer than k, distances are infinite.
        """
        distances, numbers = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        distances = np.where(numbers < 0, np.inf, distances)
        return distances, self.values[np.maximum(numbers, 0)].astype(np.int64)


def existing(folder: Path) -> Path:
    """The folder; raises `UserError` if it holds no datastore."""
    if not (folder / "datastore.json").is_file():
        raise UserError(
            f"search.datastore: {folder} holds no datastore; make one with "
            "python -m mtplug_knn RUN FOLDER"
        )
    return folder


def write(
    folder: Path,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    size: int,
    dim: int,
    meta: dict[str, Any],
    index: str = "Flat",
    report: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a datastore; the folder appears when it is whole.

    Args:
        folder: must not exist.
        blocks: keys (n, C) and values (n,), `size` in all.
        size: N.
        dim: C.
        meta: what is to be known of it, such as the model's fingerprint.
        index: in the language of `faiss.index_factory`; what it does not know is an error.
        report: told how far it is.

    Raises:
        UserError: there is something at `folder`, or faiss cannot make such an index.
    """
    faiss = _faiss()
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another folder, or remove it")
    try:
        made = faiss.index_factory(dim, index)
    except RuntimeError:
        raise UserError(
            f"--index {index}: no index of faiss for {dim} dimensions; such as Flat (exact), or "
            "IVF1024,PQ64 for millions of tokens"
        ) from None
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    values = np.empty(size, np.int32)
    keys = np.lib.format.open_memmap(aside / "keys.npy", "w+", np.float32, (size, dim))
    done = 0
    for key, value in blocks:
        keys[done : done + len(key)], values[done : done + len(key)] = key, value
        done += len(key)
        report(f"{done:,} of {size:,} tokens")
    if not made.is_trained:
        made.train(keys)
    for start in range(0, size, BLOCK):
        made.add(np.ascontiguousarray(keys[start : start + BLOCK]))
    del keys
    (aside / "keys.npy").unlink()  # the index has what it needs of them
    np.save(aside / "values.npy", values)
    faiss.write_index(made, str(aside / "index.faiss"))
    meta = {**meta, "tokens": size, "dim": dim, "index": index, "faiss": faiss.__version__}
    (aside / "datastore.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    os.replace(aside, folder)


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of a model's weights: states of another model are no keys.

    Args:
        dtype: that its parameters are taken to be held in.
    """
    whole = hashlib.sha256()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.to(dtype) if dtype is not None and name in parameters else tensor
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        whole.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        whole.update(raw.numpy().tobytes())
    return whole.hexdigest()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("mtplug-knn needs faiss: pip install faiss-cpu") from None
    return faiss
