"""The memory-mapped binary store: token ids of a parallel corpus, written by several processes.

A store is a folder: `source.bin` and `target.bin` hold all ids one after the other, the `.idx` files
hold N+1 int64 offsets, `store.json` says what it was made from. It appears whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mtplug.data.corpora import Corpus
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError

VERSION = 1
CHUNK = 4096
SIDES = ("source", "target")


class Store:
    """Read access. `store[i]` is a pair of id arrays, without `</s>`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta = json.loads((folder / "store.json").read_text())
        dtype = np.dtype(self.meta["dtype"])
        self.offsets = [np.load(folder / f"{side}.idx.npy", mmap_mode="r") for side in SIDES]
        self.ids = []
        for side, offsets in zip(SIDES, self.offsets, strict=True):
            path = folder / f"{side}.bin"
            if path.stat().st_size != int(offsets[-1]) * dtype.itemsize:
                raise UserError(f"{path} is damaged; remove {folder} and run again")
            mapped = path.stat().st_size > 0
            self.ids.append(np.memmap(path, dtype, "r") if mapped else np.zeros(0, dtype))

    def __len__(self) -> int:
        return len(self.offsets[0]) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        source, target = (
            ids[offsets[index] : offsets[index + 1]]
            for ids, offsets in zip(self.ids, self.offsets, strict=True)
        )
        return source, target

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each source and target, without `</s>`."""
        return np.diff(self.offsets[0]), np.diff(self.offsets[1])


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


def build_store(
    folder: Path,
    corpus: Corpus,
    tokenizers: tuple[Tokenizer, Tokenizer],
    fingerprint: dict[str, Any],
    *,
    max_length: int,
    on_long: str,
    keep_empty: bool = False,
    sourceless: bool = False,
    workers: int = 0,
    progress: Callable[[int], None] = lambda lines: None,
) -> Store:
    """Write the store of a corpus, or open the one that is there if its fingerprint is the same.

    Args:
        fingerprint: what the result depends on; a store made from anything else is replaced.
        max_length: longest side in tokens.
        on_long: error, skip, truncate or split.
        keep_empty: keep pairs with an empty side, so that line numbers stay those of the files.
        sourceless: an empty source is as it should be, as of text for a language model.
        workers: processes that tokenise; 0: one for each core, few for small corpora.
        progress: called with the number of lines done.

    Raises:
        UserError: a line is too long and `on_long` is error, or no pair is left.
    """
    policy = {"max_length": max_length, "on_long": on_long, "keep_empty": keep_empty}
    # Through JSON, so that it compares equal to what is read back.
    fingerprint = json.loads(json.dumps({"version": VERSION, **policy, **fingerprint}))
    if (folder / "store.json").is_file():
        meta = json.loads((folder / "store.json").read_text())
        if meta["fingerprint"] == fingerprint:
            return Store(folder)
        shutil.rmtree(folder)

    dtype = np.dtype("uint16" if max(map(len, tokenizers)) <= 1 << 16 else "uint32")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    counts = {"pairs": 0, "too_long": 0, "empty": 0, "bad_lines": 0, "unknown": 0}
    offsets = [array("q", [0]), array("q", [0])]
    line = 0
    try:
        with open(aside / "source.bin", "wb") as left, open(aside / "target.bin", "wb") as right:
            for encoded in _encode(corpus, tokenizers, workers):
                for pair in encoded:
                    line += 1
                    for piece in _fit(
                        pair, max_length, on_long, keep_empty, sourceless, line, counts
                    ):
                        for file, ids, ends in zip((left, right), piece, offsets, strict=True):
                            file.write(np.asarray(ids, dtype).tobytes())
                            ends.append(ends[-1] + len(ids))
                            counts["unknown"] += ids.count(2)
                        counts["pairs"] += 1
                progress(line)
            for file in (left, right):
                file.flush()
                os.fsync(file.fileno())
        if not counts["pairs"]:
            names = " and ".join(str(f) for f in corpus.files())
            raise UserError(f"{names}: no sentence pair is left of {line} lines ({counts})")
        counts["bad_lines"] = corpus.bad_lines
        for side, ends in zip(SIDES, offsets, strict=True):
            np.save(aside / f"{side}.idx.npy", np.asarray(ends, np.int64))
        meta = {"fingerprint": fingerprint, "dtype": dtype.name, "lines": line, "counts": counts}
        (aside / "store.json").write_text(json.dumps(meta, indent=1))
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Store(folder)


def _fit(
    pair: tuple[list[int], list[int]],
    limit: int,
    on_long: str,
    keep_empty: bool,
    sourceless: bool,
    line: int,
    counts: dict[str, int],
) -> Iterator[tuple[list[int], list[int]]]:
    source, target = pair
    if not target or not (source or sourceless):
        counts["empty"] += 1
        if keep_empty:
            yield pair
        return
    longest = max(len(source), len(target))
    if longest <= limit:
        yield pair
        return
    counts["too_long"] += 1
    if on_long == "error":
        raise UserError(
            f"pair {line} has {longest} tokens, data.max_length is {limit}; raise it, or set "
            "data.on_long to skip, truncate or split"
        )
    if on_long == "truncate":
        yield source[:limit], target[:limit]
    elif on_long == "split":
        pieces = -(-longest // limit)
        for k in range(pieces):
            cut = [
                ids[len(ids) * k // pieces : len(ids) * (k + 1) // pieces]
                for ids in (source, target)
            ]
            if cut[1] and (cut[0] or sourceless):
                yield cut[0], cut[1]
    elif keep_empty:
        yield [], []


# Set in each worker, so that the tokenizers travel once and not with every chunk.
_tokenizers: tuple[Tokenizer, Tokenizer]


def _start_worker(tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    global _tokenizers
    _tokenizers = tokenizers


def _encode_chunk(pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    sides = zip(*pairs, strict=True)
    encoded = [t.encode(list(texts)) for t, texts in zip(_tokenizers, sides, strict=True)]
    return list(zip(*encoded, strict=True))


def _encode(corpus: Corpus, tokenizers: tuple[Tokenizer, Tokenizer], workers: int) -> Iterator:
    lines = iter(corpus)
    chunks = iter(lambda: list(itertools.islice(lines, CHUNK)), [])
    workers = workers or os.cpu_count() or 1
    first = list(itertools.islice(chunks, workers))
    if workers == 1 or len(first) < workers:  # too little to be worth starting processes
        _start_worker(tokenizers)
        yield from map(_encode_chunk, itertools.chain(first, chunks))
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    with context.Pool(workers, _start_worker, (tokenizers,)) as pool:
        yield from pool.imap(_encode_chunk, itertools.chain(first, chunks))
