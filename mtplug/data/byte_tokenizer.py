"""Tokenizer `bytes`: the bytes of a text's UTF-8, as ByT5 has them (Xue et al. 2022)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import mtplug
from mtplug.data.labels import FIRST
from mtplug.data.tokenizers import SPECIAL, Tokenizer
from mtplug.data.words import SPACE
from mtplug.errors import UserError
from mtplug.files import read_json, write_whole

BYTES = 256


@dataclass
class BytesConfig:
    """The bytes of UTF-8: no vocabulary to train, no unknown text, and sequences about five times as long as in subwords."""

    joint: bool = True
    """one vocabulary for both languages: both are the same, but only one of them can share its embeddings"""
    user_symbols: list[str] = field(default_factory=list)
    """what has an id of its own wherever it stands in a text"""


class Bytes(Tokenizer):
    """Byte b has id b + 3; behind the bytes come symbols. What is no UTF-8, as in half of a character, is not decoded.

    Args:
        symbols: that have ids of their own.
    """

    def __init__(self, symbols: Iterable[str] = ()):
        self.symbols = list(dict.fromkeys(symbols))
        self.pieces = [*SPECIAL, *map(_form, range(BYTES)), *self.symbols]
        self.ids = {symbol: FIRST + BYTES + n for n, symbol in enumerate(self.symbols)}
        longest_first = sorted(self.symbols, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self.ids else None

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        if self._cut is None:
            return [_bytes(text) for text in texts]
        return [
            [i for n, part in enumerate(self._cut.split(text)) for i in ([self.ids[part]] if n % 2 else _bytes(part))]
            for text in texts
        ]  # fmt: skip

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [self._text(row) for row in ids]

    def _text(self, ids: list[int]) -> str:
        written = bytearray()
        for i in ids:
            if i >= FIRST + BYTES:
                written += self.pieces[i].encode()
            elif i >= FIRST:
                written.append(i - FIRST)
        return written.decode(errors="ignore")

    def tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]

    def save(self, folder: Path, side: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.symbols, ensure_ascii=False)
        write_whole(folder / f"{side}.symbols.json", text)

    @classmethod
    def load(cls, folder: Path, side: str) -> Bytes:
        file = folder / f"{side}.symbols.json"
        if not file.is_file():
            raise UserError(f"{file} is missing; the run's folder is not complete")
        return cls(read_json(file, "restore that file", list))


def _bytes(text: str) -> list[int]:
    return [FIRST + byte for byte in text.encode("utf-8", "replace")]


def _form(byte: int) -> str:
    if byte == 32:
        return SPACE
    return chr(byte) if 32 < byte < 127 else f"<0x{byte:02X}>"


class BytesFactory:
    def __init__(self, config: BytesConfig):
        self.config = config

    @property
    def joint(self) -> bool:
        return self.config.joint

    def size(self, side: str) -> int:
        return len(Bytes(self.config.user_symbols))

    def train(self, texts: Iterable[str], what: str) -> Bytes:
        return Bytes(self.config.user_symbols)

    def load(self, folder: Path, side: str) -> Bytes:
        return Bytes.load(folder, side)


@mtplug.hookimpl
def register_tokenizers(register):
    register("bytes", BytesFactory, BytesConfig)
