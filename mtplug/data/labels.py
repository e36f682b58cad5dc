"""Labels as a vocabulary: what an aligned task writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mtplug.data.tokenizers import SPECIAL, UNK, Tokenizer
from mtplug.errors import UserError
from mtplug.files import read_json, write_whole

FIRST = len(SPECIAL)
"""Id of the first label."""


class Labels(Tokenizer):
    """Labels separated by blanks; one that training never saw is unknown."""

    def __init__(self, labels: list[str]):
        self.pieces = [*SPECIAL, *labels]
        self.index = {label: FIRST + n for n, label in enumerate(labels)}

    @classmethod
    def train(cls, texts: Iterable[str]) -> Labels:
        """All labels of `texts`, in alphabetical order."""
        return cls(sorted({label for text in texts for label in text.split()}))

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[self.index.get(label, UNK) for label in text.split()] for text in texts]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [" ".join(self.pieces[i] for i in row if i >= UNK) for row in ids]

    def tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]

    def save(self, folder: Path, side: str) -> None:
        text = json.dumps(self.pieces[FIRST:], ensure_ascii=False, indent=1)
        write_whole(folder / f"{side}.json", text)

    @classmethod
    def load(cls, folder: Path, side: str) -> Labels:
        file = folder / f"{side}.json"
        if not file.is_file():
            raise UserError(f"{file} is missing; the run's folder is not complete")
        return cls(read_json(file, "restore that file", list))
