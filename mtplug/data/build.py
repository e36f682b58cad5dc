"""The binary store: how it is written, and mended.

The corpus is read once, from its beginning to its end, and never held in memory. What is written
depends on the corpus and the tokenizers alone.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mtplug.data.corpora import Corpus
from mtplug.data.encoding import COUNTS, BadPair, Encoding, encode
from mtplug.data.pairs import Pairs
from mtplug.data.store import BLOCK, RECORD, Store, shard_damage, shard_path
from mtplug.errors import UserError
from mtplug.files import flush_to_disk, whole_file, whole_folder

VERSION = 2
READ_FOR = "read_for"
"""In a fingerprint the languages that a corpus was read for, which stores of earlier versions do not tell."""
SHARD = 1 << 20
"""Lines of the corpus that a shard is made from; a multiple of `encoding.CHUNK`."""


def build_store(
    folder: Path,
    corpus: Corpus,
    encoding: Encoding,
    fingerprint: dict[str, Any],
    *,
    workers: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> Store:
    """Write the store of a corpus, or open the one that is there if its fingerprint is the same.

    It appears whole or not at all. Shards that are missing, unreadable or of the wrong size are
    written anew.

    Args:
        fingerprint: what the result depends on; a store made from anything else is replaced.
        workers: processes that tokenise; 0: one for each core, one for small corpora.
        report: told of shards that were mended.

    Raises:
        UserError: a line is too long and `on_long` is error, a tokenizer does not take it, no pair is left, or a shard is damaged
            and cannot be made as it was.
        MtplugError: a process died.
    """
    policy = {k: getattr(encoding, k) for k in ("max_length", "on_long", "keep_text")}
    policy["keep_empty"] = False  # as stores of earlier versions say
    if encoding.on_long == "split":  # whose pieces were others in earlier versions
        policy["cuts"] = "between words"
    # Through JSON, so that it compares equal to what is read back.
    fingerprint = json.loads(json.dumps({"version": VERSION, **policy, **fingerprint}))
    meta = _read_meta(folder)
    earlier = {key: value for key, value in fingerprint.items() if key != READ_FOR}
    if meta is not None and meta.get("fingerprint") in (fingerprint, earlier):
        for number, problem in shard_damage(folder, meta).items():
            report(f"data: {problem}; writing it anew")
            _mend(folder, number, corpus, encoding, workers)
        return Store(folder)

    try:
        with whole_folder(folder, replace=True) as aside:
            written = _write(aside, corpus, encoding, workers)
            if not written["counts"]["pairs"]:
                raise UserError(
                    f"{corpus}: no sentence pair is left of {written['lines']} lines ({written['counts']})"
                )
            made = {"fingerprint": fingerprint, **written}
            (aside / "store.json").write_text(json.dumps(made, indent=1))
            flush_to_disk(aside / "store.json")
        flush_to_disk(folder.parent)
    except BadPair as error:
        raise UserError(f"{corpus}: {error}") from None
    store = Store(folder)
    store.fresh = True
    return store


def _write(folder: Path, corpus: Corpus, encoding: Encoding, workers: int) -> dict[str, Any]:
    counts = dict.fromkeys(COUNTS, 0)
    sizes: list[int] = []
    lines = crc = blocks = 0
    shard = open(shard_path(folder, 0), "wb")  # noqa: SIM115
    try:
        with open(folder / "index.bin", "wb") as index:
            for count, pairs, _, found in encode(corpus, encoding, workers):
                if lines and lines % SHARD == 0:
                    sizes.append(_finish(shard))
                    shard = open(shard_path(folder, len(sizes)), "wb")  # noqa: SIM115
                first = counts["pairs"]
                records = _append(shard, pairs, first, len(sizes)).tobytes()
                index.write(records)
                crc, blocks = zlib.crc32(records, crc), blocks + len(records) // RECORD.itemsize
                for key in COUNTS:
                    counts[key] += found[key]
                lines += count
            sizes.append(_finish(shard))
            _finish(index)
    finally:
        shard.close()
    counts["bad_lines"] = corpus.bad_lines
    return {
        "dtype": encoding.dtype.name,
        "text": encoding.keep_text,
        "lines": lines,
        "counts": counts,
        "blocks": blocks,
        "crc": crc,
        "shards": sizes,
    }


def _append(file: Any, pairs: Pairs, first: int, shard: int) -> np.ndarray:
    """Write pairs as blocks; the records of these."""
    records = []
    for start in range(0, len(pairs), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(pairs)))
        data = pairs.take(rows).to_bytes()
        records.append((first + start, file.tell(), len(data), zlib.crc32(data), shard, len(rows)))
        file.write(data)
    return np.array(records, RECORD)


def _mend(folder: Path, number: int, corpus: Corpus, encoding: Encoding, workers: int) -> None:
    """Write one shard anew, from the lines that it was made of."""
    path = shard_path(folder, number)
    index = np.fromfile(folder / "index.bin", RECORD)
    wanted = index[index["shard"] == number]
    first = number * SHARD
    lines: Iterable = itertools.islice(corpus, first, first + SHARD)
    made = []
    with whole_file(path) as aside:
        with open(aside, "wb") as file:
            for _, pairs, _, _ in encode(lines, encoding, workers, first + 1):
                made.append(_append(file, pairs, 0, number))
            _finish(file)
        crcs = np.concatenate([m["crc"] for m in made]) if made else np.zeros(0, "<u4")
        if crcs.tolist() != wanted["crc"].tolist():
            raise UserError(
                f"{path} is damaged, and the corpus no longer gives what it held; remove {folder} and "
                "run again"
            )
        if path.is_dir():
            shutil.rmtree(path)
    flush_to_disk(folder)


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """What `store.json` says; None where a store cannot be used as it is."""
    try:
        meta = json.loads((folder / "store.json").read_text())
        index = (folder / "index.bin").read_bytes()
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and zlib.crc32(index) == meta.get("crc") else None


def _finish(file: Any) -> int:
    """Close a file when it is safely on disk; its size."""
    file.flush()
    os.fsync(file.fileno())
    size = file.tell()
    file.close()
    return size
