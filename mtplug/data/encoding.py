"""Text pairs to ids, by several processes, in order and with bounded memory."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mtplug.data.pairs import Column, Pairs
from mtplug.data.splitting import split, truncated
from mtplug.data.tokenizers import Tokenizer, refusals
from mtplug.data.workers import Workers, cores
from mtplug.errors import UserError

CHUNK = 4096
"""Lines that a process is given at a time."""
COUNTS = ("pairs", "too_long", "empty", "unknown", "tokens")


Encoded = tuple[Pairs, np.ndarray, dict[str, int]]


class BadPair(UserError):
    """A pair of a corpus cannot be taken; who reads the corpus says which that is."""


def too_long(number: int, sides: tuple[int, int], limit: int, pair: tuple[str, str]) -> BadPair:
    """What is told of a pair that has more tokens than `data.max_length` where `data.on_long` is error.

    Args:
        number: of those that filters and skipped lines leave, so that the text is told too.
        sides: tokens of source and target.
    """
    longest = max(sides)
    text = " ".join(pair[sides.index(longest)].split())
    return BadPair(
        f"pair {number} has {longest} tokens, data.max_length is {limit}; raise it, or set "
        f"data.on_long to skip, truncate or split; it begins with: {text[:40]}"
    )


@dataclass
class Encoding:
    """How pairs of text become pairs of ids.

    Args:
        tokenizers: of source and target.
        max_length: longest side in tokens.
        on_long: error, skip, truncate or split.
        keep_text: keep the text beside the ids; not with `split`.
        sourceless: an empty source is as it should be, as of text for a language model.
        heads: ids of what corpora put in front of source texts, for `split`.
    """

    tokenizers: tuple[Tokenizer, Tokenizer]
    max_length: int
    on_long: str
    keep_text: bool = False
    sourceless: bool = False
    heads: tuple[tuple[int, ...], ...] = ()
    dtype: np.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = np.dtype("uint16" if max(map(len, self.tokenizers)) <= 1 << 16 else "uint32")
        if self.keep_text and self.on_long == "split":
            raise UserError(
                "data.on_long: split cuts ids, but this tokenizer cuts text anew in each epoch; "
                "choose skip or truncate"
            )

    def __call__(self, lines: list[tuple[str, str]], first: int) -> Encoded:
        """The pairs that are kept of `lines`, the number of the line of each, and counts.

        Args:
            lines: pairs of text.
            first: number of the first of them, from 1.

        Raises:
            BadPair: a line is too long and `on_long` is error, or a tokenizer does not take it.
        """
        counts = dict.fromkeys(COUNTS, 0)
        encoded = [
            _encoded(t, [pair[side] for pair in lines], first)
            for side, t in enumerate(self.tokenizers)
        ]
        kept: list[tuple[list[int], list[int]]] = []
        numbers: list[int] = []
        for number, pair in enumerate(zip(*encoded, strict=True)):
            for piece in self._fit(pair, first + number, lines[number], counts):
                kept.append(piece)
                numbers.append(number)
        columns = [Column.of([pair[side] for pair in kept], self.dtype) for side in (0, 1)]
        for tokenizer, column in zip(self.tokenizers, columns, strict=True):
            low, high = column.flat.min(initial=1), column.flat.max(initial=0)
            if low < 1 or high >= len(tokenizer):
                wrong = (
                    "0, which is padding"
                    if low < 1
                    else f"{high}, and has {len(tokenizer)} of them"
                )
                raise UserError(
                    f"tokenizer {type(tokenizer).__name__}: encode gives the id {wrong}"
                )
        counts["pairs"] = len(kept)
        counts["unknown"] = sum(
            t.unknown(c.flat) for t, c in zip(self.tokenizers, columns, strict=True)
        )
        counts["tokens"] = sum(len(c.flat) for c in columns)
        kept_text = None
        if self.keep_text:
            source, target = ([lines[n][side] for n in numbers] for side in (0, 1))
            kept_text = (Column.of_texts(source), Column.of_texts(target))
        return Pairs(columns[0], columns[1], kept_text), first + np.array(numbers, np.int64), counts

    def told(self, counts: dict[str, int]) -> str:
        """What is to be told of counts, behind something else; empty if nothing is."""
        said = (
            ("too_long", f"beyond {self.max_length} tokens ({self.on_long})"),
            ("empty", "with an empty side (skipped)"),
            ("bad_lines", "unreadable (skipped)"),
            ("unknown", "unknown tokens"),
        )
        notes = [f"{counts[key]:,} {text}" for key, text in said if counts.get(key)]
        return f"; {', '.join(notes)}" if notes else ""

    def unknown(self, counts: dict[str, int]) -> str:
        """What is to be told where more than a hundredth of the tokens is unknown; empty if no more is."""
        share = counts.get("unknown", 0) / max(counts.get("tokens", 0), 1)
        if not 0.01 < share <= 1:  # stores of earlier versions don't tell their tokens
            return ""
        return (
            f"{share:.1%} of the tokens are unknown, which the model can neither read nor write; better is a tokenizer "
            "that is trained on such text (neither tokenizer.model nor training.finetune_from of other text), with "
            "tokenizer.byte_fallback=true or a larger character_coverage, or for words a larger vocab_size"
        )

    def _fit(
        self,
        pair: tuple[list[int], list[int]],
        line: int,
        texts: tuple[str, str],
        counts: dict[str, int],
    ) -> Iterator[tuple[list[int], list[int]]]:
        source, target = pair
        if not target or not (source or self.sourceless):
            counts["empty"] += 1
            return
        limit, sizes = self.max_length, (len(source), len(target))
        if max(sizes) <= limit:
            yield pair
            return
        counts["too_long"] += 1
        if self.on_long == "error":
            raise too_long(line, sizes, limit, texts)
        if self.on_long == "truncate":
            source_tokenizer, target_tokenizer = self.tokenizers
            yield (
                truncated(source_tokenizer, source, limit, self.heads),
                truncated(target_tokenizer, target, limit),
            )
        elif self.on_long == "split":
            sides = list(zip(self.tokenizers, pair, strict=True))
            for source, target in zip(*split(sides, limit, self.heads), strict=True):
                if target and (source or self.sourceless):
                    yield source, target


def _encoded(tokenizer: Tokenizer, texts: list[str], first: int) -> list[list[int]]:
    try:
        return tokenizer.encode(texts)
    except UserError:
        for number, why in refusals(tokenizer, texts).items():
            raise BadPair(f"pair {first + number}: {why}") from None
        raise


def encode(
    lines: Iterable[tuple[str, str]], encoding: Encoding, workers: int = 0, first: int = 1
) -> Iterator[tuple[int, Pairs, np.ndarray, dict[str, int]]]:
    """(lines, pairs kept of them, the line of each, counts) for each chunk of lines, in order.

    What comes out does not depend on the number of processes.

    Args:
        workers: processes; 0: one for each core. Few lines are encoded in this process.
        first: number of the first line, for messages.

    Raises:
        MtplugError: one of the processes died.
    """
    iterator = iter(lines)
    chunks = iter(lambda: list(itertools.islice(iterator, CHUNK)), [])
    workers = workers or cores()
    ahead = list(itertools.islice(chunks, workers))
    numbered = _numbered(itertools.chain(ahead, chunks), first)
    counted = functools.partial(_counted, encoding)
    if workers == 1 or len(ahead) < workers:  # too little to be worth starting processes
        yield from itertools.starmap(counted, numbered)
        return
    ahead = []
    with Workers(counted, workers, "tokenise") as several:
        yield from several.map(numbered)


def _numbered(chunks: Iterable[list], first: int) -> Iterator[tuple[list, int]]:
    for chunk in chunks:
        yield chunk, first
        first += len(chunk)


def _counted(
    encoding: Encoding, lines: list[tuple[str, str]], first: int
) -> tuple[int, Pairs, np.ndarray, dict[str, int]]:
    return len(lines), *encoding(lines, first)
