"""The file of a SentencePiece model: a serialised protobuf message (sentencepiece_model.proto).

Field 1 of it, `pieces`, has an entry for each id: 1 text, 2 score, 3 type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type
_FIRST = [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)]


def renumbered(model: bytes) -> bytes:
    """A model with padding, `</s>` and unknown as ids 0, 1 and 2, as all of mtplug counts, and the rest behind.

    SentencePiece's own order is unknown, `<s>`, `</s>`; Marian's begins with `</s>`; either may be left out.
    Text is cut into the same pieces.
    """
    entries = [(number, value) for number, value in fields(model) if number == 1]
    told = [read_piece(value) for _, value in entries]
    if [(text, type_) for text, _, type_ in told[:3]] == _FIRST:
        return model
    names = {text for text, _ in _FIRST}
    kept = [
        entry(text, score, type_)
        for text, score, type_ in told
        if type_ != UNKNOWN and text not in names and (text, type_) != ("<s>", CONTROL)
    ]
    rest = [delimited(number, value) for number, value in fields(model) if number != 1]
    return b"".join([*(entry(text, 0.0, type_) for text, type_ in _FIRST), *kept, *rest])


def entry(text: str, score: float, type_: int) -> bytes:
    """One piece, as the message holds it."""
    made = delimited(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return delimited(1, made if type_ == NORMAL else made + b"\x18" + _varint(type_))


def delimited(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    """Seven bits at a time, the lowest first; the eighth says that more follow."""
    made = b""
    while number > 127:
        made += bytes([number & 127 | 128])
        number >>= 7
    return made + bytes([number])


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a serialised protobuf message; fixed-size values as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        at += size
        yield key >> 3, message[at - size : at]


def read_piece(message: bytes) -> tuple[str, float, int]:
    """Text, score and type of an entry of the model's vocabulary."""
    found = dict(fields(message))
    score = struct.unpack("<f", found[2])[0] if 2 in found else 0.0
    return found[1].decode(), score, found.get(3, NORMAL)
