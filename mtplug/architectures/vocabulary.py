"""Rows of a vocabulary's table taken over from another vocabulary, by the pieces' written form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtplug.architectures.base import output_of


@dataclass
class Rows:
    """For each piece of a vocabulary the rows of the base that make its own.

    Attributes:
        sources: one row: the same piece; several: the pieces that it is cut into; none: it starts fresh.
        dropped: pieces of the base that are not in this vocabulary.
    """

    sources: list[list[int]]
    shared: int
    composed: int
    fresh: int
    dropped: int

    def taken(self, base: Tensor, own: Tensor) -> Tensor:
        """`own` with the rows that `base` gives: shared ones as they are, composed ones as means."""
        made = own.detach().clone()
        for row, sources in enumerate(self.sources):
            if len(sources) == 1:
                made[row] = base[sources[0]]
            elif sources:
                made[row] = base[torch.tensor(sources)].double().mean(0).to(made.dtype)
        return made


def rows_between(pieces: list[str], old: list[str]) -> Rows | None:
    """Where the rows of `pieces` come from, or None where `old` are the same in the same order.

    A piece that the base has keeps its row. A new one gets the mean of the rows of those pieces of
    the base that it is cut into (Gee et al. 2022, Fast Vocabulary Transfer), from left to right, the longest
    first. A new symbol in angle brackets starts fresh, as does a piece that the base cannot spell.
    """
    if pieces == old:
        return None
    index: dict[str, int] = {}
    for row, piece in enumerate(old):
        index.setdefault(piece, row)
    spelling = {p: i for p, i in index.items() if p and not _is_symbol(p)}
    longest = max(map(len, spelling), default=0)
    sources, composed = [], 0
    for piece in pieces:
        if piece in index:
            sources.append([index[piece]])
            continue
        sources.append([] if _is_symbol(piece) else _cut(piece, spelling, longest))
        composed += bool(sources[-1])
    shared = sum(piece in index for piece in pieces)
    fresh = len(pieces) - shared - composed
    return Rows(sources, shared, composed, fresh, len(set(old) - set(pieces)))


def _is_symbol(piece: str) -> bool:
    return len(piece) > 2 and piece.startswith("<") and piece.endswith(">")


def _cut(piece: str, index: dict[str, int], longest: int) -> list[int]:
    found, start = [], 0
    while start < len(piece):
        for end in range(min(len(piece), start + longest), start, -1):
            if piece[start:end] in index:
                found.append(index[piece[start:end]])
                start = end
                break
        else:
            return []
    return found


def tables(model: nn.Module, source_size: int, target_size: int) -> dict[str, str]:
    """Names of the tensors with one row for each piece, and whose pieces: source or target.

    They are embeddings of a vocabulary's size, the output projection, and its bias.
    """
    output, bias = output_of(model)
    found: dict[str, str] = {}
    weights: dict[int, str] = {} if output is None else {id(output): "target"}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            side = side_of(name)
            if len(module.weight) == (source_size if side == "source" else target_size):
                weights.setdefault(id(module.weight), side)
    for prefix, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and id(weight) in weights:
            for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
                found[f"{prefix}.{name}" if prefix else name] = weights[id(weight)]
    found.update((name, "target") for name, p in model.named_parameters() if p is bias)
    return found


def side_of(name: str) -> str:
    """Whose pieces a table counts, by its name: source, or target where it doesn't say."""
    return "source" if any(word in name for word in ("encoder", "source")) else "target"
