"""The memory-mapped binary store of a parallel corpus: how it is read.

A store is a folder:

- `shard-00000.bin`, … hold blocks of up to 256 sentence pairs, one after the other, each as
  `Pairs.to_bytes` writes it;
- `index.bin` has a record for each block: where it is, how many pairs it holds, its CRC-32;
- `store.json` says what it was made from, how large each shard is, and what was left out.

A block is what is read at a time, and every one that is read is checked.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mtplug.data.pairs import Pairs
from mtplug.errors import UserError

BLOCK = 256
RECORD = np.dtype(
    [("first", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("shard", "<u4"), ("pairs", "<u4")]
)  # fmt: skip
"""A block: number of its first pair in the store, its place in the shard, bytes, CRC-32, shard, pairs."""


class Store:
    """Read access. `store[i]` is a pair of id arrays, without `</s>`.

    Args:
        folder: of the store.

    Attributes:
        fresh: whether `build_store` has just written it.

    Raises:
        UserError: a file is missing, unreadable or of the wrong size; all such files are named.
    """

    fresh = False

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.meta: dict[str, Any] = json.loads((folder / "store.json").read_text())
            self.index = np.memmap(folder / "index.bin", RECORD, "r")
            self.dtype, self.text = np.dtype(self.meta["dtype"]), bool(self.meta["text"])
            whole = (
                len(self.index),
                zlib.crc32(self.index.tobytes()),
                int(self.index["pairs"].sum()),
            )
            said = self.meta["blocks"], self.meta["crc"], self.meta["counts"]["pairs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, [f"{folder}: {error}"]) from None
        if whole[:2] != said[:2]:
            raise _damaged(folder, [f"{folder / 'index.bin'} is damaged"])
        if whole != said or self.dtype.kind != "u":
            raise _damaged(folder, [f"{folder / 'store.json'} is damaged"])
        self._maps: dict[int, mmap.mmap] = {}
        if wrong := shard_damage(folder, self.meta):
            raise _damaged(folder, list(wrong.values()))

    def __len__(self) -> int:
        return int(self.meta["counts"]["pairs"])

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        place = int(np.searchsorted(self.index["first"], number, side="right")) - 1
        pairs, row = self.block(place), number - int(self.index["first"][place])
        return pairs.source[row], pairs.target[row]

    @property
    def blocks(self) -> int:
        return len(self.index)

    def block(self, number: int) -> Pairs:
        """A block, without a copy.

        Raises:
            UserError: the shard that it lies in cannot be read, or holds something else.
        """
        record = self.index[number]
        start, size, shard = int(record["offset"]), int(record["size"]), int(record["shard"])
        path = shard_path(self.folder, shard)
        try:
            if shard not in self._maps:
                with path.open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            data = memoryview(self._maps[shard])[start : start + size]
        except (OSError, ValueError) as error:
            raise _damaged(self.folder, [f"{path}: {error}"]) from None
        if zlib.crc32(data) != record["crc"]:
            raise UserError(
                f"{path} is damaged (block {number}); remove that file and run again: it is "
                "written anew from the corpus"
            )
        try:
            return Pairs.from_bytes(data, int(record["pairs"]), self.dtype, self.text)
        except ValueError as error:  # what it holds is as it was written
            raise _damaged(self.folder, [f"{self.folder / 'store.json'}: {error}"]) from None

    def forget(self) -> None:
        """Let go of the pages of all blocks read so far; they count as this process's memory."""
        for one in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                one.madvise(mmap.MADV_DONTNEED)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.bin"


def shard_damage(folder: Path, meta: dict[str, Any]) -> dict[int, str]:
    """Shards that are missing, unreadable or of the wrong size, and what is wrong with each."""
    found = {}
    for number, size in enumerate(meta["shards"]):
        path = shard_path(folder, number)
        try:
            with path.open("rb") as file:
                there = file.seek(0, 2)
        except OSError as error:
            found[number] = f"{path} cannot be read ({error.strerror})"
            continue
        if there != size:
            found[number] = f"{path} has {there:,} bytes, not {size:,}"
    return found


def _damaged(folder: Path, what: list[str]) -> UserError:
    more = f" and {len(what) - 3} more" if len(what) > 3 else ""
    return UserError(
        f"{'; '.join(what[:3])}{more}; run mtplug-preprocess, or remove {folder}: it is written "
        "anew from the corpus"
    )


def checksum(path: Path) -> str:
    """SHA-256 of a file; a file is read again only when its size or time has changed."""
    stat = path.stat()
    return _checksum(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _checksum(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
