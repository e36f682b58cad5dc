"""A set of 64-bit hashes that stores nothing but the hashes, to find exact duplicates."""

from __future__ import annotations

from array import array
from hashlib import blake2b


class HashSet:
    """Texts that were seen, by 8 bytes each of their BLAKE2b.

    An open-addressed table (linear probing) that doubles when it is two thirds full: 12 to 24 bytes
    for each text, while doubling a half more. Two of n different texts share a hash, and one of them passes for a
    duplicate, with probability n²/2⁶⁵: 0.0003 for 100 million.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 << 10))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> bool:
        """Add a text; false if it was there."""
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        key = int.from_bytes(digest, "little") or 1  # 0 marks an empty place
        if not _insert(self._table, key):
            return False
        self._count += 1
        if 3 * self._count > 2 * len(self._table):
            larger = array("Q", bytes(16 * len(self._table)))
            for old in self._table:
                if old:
                    _insert(larger, old)
            self._table = larger
        return True


def _insert(table: array, key: int) -> bool:
    mask = len(table) - 1
    place = key & mask
    while found := table[place]:
        if found == key:
            return False
        place = (place + 1) & mask
    table[place] = key
    return True
