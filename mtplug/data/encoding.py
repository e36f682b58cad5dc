"""Text pairs to ids, by several processes, in order and with bounded memory."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np

from mtplug.data.pairs import Column, Pairs
from mtplug.data.splitting import split
from mtplug.data.tokenizers import UNK, Tokenizer
from mtplug.errors import MtplugError, UserError

CHUNK = 4096
"""Lines that a process is given at a time."""
COUNTS = ("pairs", "too_long", "empty", "unknown", "tokens")


Encoded = tuple[Pairs, np.ndarray, dict[str, int]]


class TooLong(UserError):
    """A pair has more tokens than `data.max_length`, and `data.on_long` is error."""


def too_long(number: int, tokens: int, limit: int) -> TooLong:
    """What is told of a pair of a corpus."""
    return TooLong(
        f"pair {number} has {tokens} tokens, data.max_length is {limit}; raise it, or set "
        "data.on_long to skip, truncate or split"
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
            UserError: a line is too long and `on_long` is error.
        """
        counts = dict.fromkeys(COUNTS, 0)
        encoded = [
            t.encode([pair[side] for pair in lines]) for side, t in enumerate(self.tokenizers)
        ]
        kept: list[tuple[list[int], list[int]]] = []
        numbers: list[int] = []
        for number, pair in enumerate(zip(*encoded, strict=True)):
            for piece in self._fit(pair, first + number, counts):
                kept.append(piece)
                numbers.append(number)
        columns = [Column.of([pair[side] for pair in kept], self.dtype) for side in (0, 1)]
        counts["pairs"] = len(kept)
        counts["unknown"] = sum(int((c.flat == UNK).sum()) for c in columns)
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
        self, pair: tuple[list[int], list[int]], line: int, counts: dict[str, int]
    ) -> Iterator[tuple[list[int], list[int]]]:
        source, target = pair
        if not target or not (source or self.sourceless):
            counts["empty"] += 1
            return
        limit, longest = self.max_length, max(len(source), len(target))
        if longest <= limit:
            yield pair
            return
        counts["too_long"] += 1
        if self.on_long == "error":
            raise too_long(line, longest, limit)
        if self.on_long == "truncate":
            yield source[:limit], target[:limit]
        elif self.on_long == "split":
            sides = list(zip(self.tokenizers, pair, strict=True))
            for source, target in zip(*split(sides, limit, self.heads), strict=True):
                if target and (source or self.sourceless):
                    yield source, target


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
    workers = workers or _cores()
    ahead = list(itertools.islice(chunks, workers))
    numbered = _numbered(itertools.chain(ahead, chunks), first)
    if workers == 1 or len(ahead) < workers:  # too little to be worth starting processes
        for chunk, number in numbered:
            yield len(chunk), *encoding(chunk, number)
        return
    ahead = []
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    waiting: collections.deque[tuple[int, Future]] = collections.deque()
    with ProcessPoolExecutor(workers, context, _start_worker, (encoding,)) as pool:
        try:
            for chunk, number in numbered:
                waiting.append((len(chunk), pool.submit(_encode_chunk, chunk, number)))
                if len(waiting) > 2 * workers:
                    count, done = waiting.popleft()
                    yield count, *done.result()
            while waiting:
                count, done = waiting.popleft()
                yield count, *done.result()
        except BrokenProcessPool:
            raise MtplugError(
                f"one of {workers} processes that tokenise has died (killed, or out of memory); "
                "nothing was written; run again, perhaps with a smaller data.workers"
            ) from None
        finally:
            for _, future in waiting:
                future.cancel()


def _cores() -> int:
    """Those that this process may use, which are not all where many share a machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numbered(chunks: Iterable[list], first: int) -> Iterator[tuple[list, int]]:
    for chunk in chunks:
        yield chunk, first
        first += len(chunk)


# Set in each worker, so that the tokenizers travel once and not with every chunk.
_encoding: Encoding


def _start_worker(encoding: Encoding) -> None:
    global _encoding
    _encoding = encoding
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a parent that was killed would wait for work for ever, and keep a log's pipe open."""
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


def _encode_chunk(lines: list[tuple[str, str]], first: int) -> Encoded:
    return _encoding(lines, first)
