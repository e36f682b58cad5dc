"""Many sentence pairs in a few flat arrays, so that nothing is done in Python for each sentence."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Column:
    """N sequences, one after the other.

    Attributes:
        flat: (all,) their elements.
        lengths: (N,) int64.
    """

    flat: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], dtype: np.dtype | type) -> Column:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if len(rows) and isinstance(rows[0], np.ndarray):
            return cls(np.concatenate(rows).astype(dtype, copy=False), lengths)
        ids = itertools.chain.from_iterable(rows)
        return cls(np.fromiter(ids, dtype, int(lengths.sum())), lengths)

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Column:
        """Their UTF-8 bytes."""
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), lengths)

    def texts(self) -> list[str]:
        """What `of_texts` was given."""
        return [row.tobytes().decode() for row in self.rows()]

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """(N,) where each begins in `flat`."""
        return np.cumsum(self.lengths) - self.lengths

    def __getitem__(self, row: int) -> np.ndarray:
        start = int(self.starts[row])
        return self.flat[start : start + int(self.lengths[row])]

    def rows(self) -> list[np.ndarray]:
        return np.split(self.flat, np.cumsum(self.lengths)[:-1]) if len(self) else []

    def take(self, rows: np.ndarray) -> Column:
        """The sequences `rows`, in that order."""
        lengths = self.lengths[rows]
        places = np.repeat(self.starts[rows] - np.cumsum(lengths) + lengths, lengths)
        return Column(self.flat[places + np.arange(len(places))], lengths)


@dataclass
class Pairs:
    """N sentence pairs.

    Attributes:
        source, target: ids, without `</s>`.
        texts: the UTF-8 bytes of both sides, where they are kept.
    """

    source: Column
    target: Column
    texts: tuple[Column, Column] | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def columns(self) -> list[Column]:
        return [self.source, self.target, *(self.texts or ())]

    def take(self, rows: np.ndarray) -> Pairs:
        return _of([column.take(rows) for column in self.columns])

    def to_bytes(self) -> bytes:
        """Lengths of all columns as uint32, then their elements; a multiple of four bytes."""
        parts = [np.concatenate([c.lengths for c in self.columns]).astype("<u4").tobytes()]
        parts += [np.ascontiguousarray(c.flat).tobytes() for c in self.columns]
        return (whole := b"".join(parts)) + b"\0" * (-len(whole) % 4)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, count: int, dtype: np.dtype, text: bool) -> Pairs:
        """What `to_bytes` wrote, without a copy."""
        types = [dtype, dtype] + ([np.dtype(np.uint8)] * 2 if text else [])
        lengths = np.frombuffer(data, "<u4", count * len(types)).reshape(len(types), count)
        place = lengths.nbytes
        columns = []
        for row, kind in zip(lengths.astype(np.int64), types, strict=True):
            total = int(row.sum())
            columns.append(Column(np.frombuffer(data, kind, total, place), row))
            place += total * kind.itemsize
        return _of(columns)


def _of(columns: list[Column]) -> Pairs:
    return Pairs(columns[0], columns[1], (columns[2], columns[3]) if len(columns) > 2 else None)


def joined(parts: Iterable[Pairs]) -> Pairs:
    """One after the other; at least one."""
    columns = zip(*(p.columns for p in parts), strict=True)
    return _of(
        [
            Column(
                np.concatenate([c.flat for c in same]), np.concatenate([c.lengths for c in same])
            )
            for same in columns
        ]
    )
