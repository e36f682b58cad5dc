"""Filters of training pairs, and the report of what they dropped.

`filtered(corpus, config)` is a corpus of the pairs that stay; iterating streams. Validation and test data
are never filtered: scores of filtered data could not be compared.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtplug.config.schema import FilterConfig
from mtplug.data.corpora import Corpus, View, has_text
from mtplug.data.hashes import HashSet
from mtplug.data.scripts import ScriptShare, checked, scripts_of
from mtplug.errors import UserError
from mtplug.files import write_whole

Filter = Callable[[str, str], str]
"""Why a pair is dropped; an empty text for one that stays."""

EXAMPLES = 5


@dataclass
class Dropped:
    """What one filter dropped: how many, and the first of them."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class FilterReport:
    """What became of the pairs of one corpus. A pair is counted at the first filter that it fails."""

    read: int = 0
    complete: bool = False
    """whether the corpus was read to its end"""
    dropped: dict[str, Dropped] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        dropped = sum(d.count for d in self.dropped.values())
        return {
            "read": self.read,
            "kept": self.read - dropped,
            "dropped": {
                name: {
                    "count": d.count,
                    "share": d.count / max(self.read, 1),
                    "examples": d.examples,
                }
                for name, d in self.dropped.items()
            },
        }


def active(config: FilterConfig) -> bool:
    """Whether any filter is on."""
    return bool(
        config.min_length or config.max_length or config.max_ratio
        or config.copies or config.script or config.duplicates
    )  # fmt: skip


Wording = Callable[[str], str]
"""A source to what filters look at of it."""


def filtered(corpus: Corpus, config: FilterConfig, wording: Wording = lambda text: text) -> Corpus:
    """The pairs of a corpus that its filters keep; the corpus itself where no filter is on."""
    return Filtered(corpus, config, wording) if active(config) else corpus


class Filtered(View):
    """A corpus without the pairs that filters drop.

    Args:
        wording: the sentence itself of a source, into which a corpus may have written more, such as a prefix.

    Attributes:
        report: of the last iteration, complete when that has ended.
    """

    def __init__(self, corpus: Corpus, config: FilterConfig, wording: Wording):
        super().__init__(corpus)
        self.filters, self.wording = config, wording
        self.report = FilterReport()
        filters_of(config, corpus.languages)  # wrong settings are told before any reading

    def __iter__(self) -> Iterator[tuple[str, str]]:
        filters = filters_of(self.filters, self.languages)
        kept = False
        self.report = report = FilterReport(dropped={name: Dropped() for name in filters})
        for source, target in self.corpus:
            report.read += 1
            if not has_text((source, target)):  # the end of a document
                yield source, target
                continue
            text = self.wording(source)
            for name, why_dropped in filters.items():
                if why := why_dropped(text, target):
                    dropped = report.dropped[name]
                    dropped.count += 1
                    if len(dropped.examples) < EXAMPLES:
                        example = {"pair": report.read, "source": text, "target": target}
                        dropped.examples.append({**example, "why": why})
                    break
            else:
                kept = True
                yield source, target
        report.complete = True
        if not kept and any(d.count for d in report.dropped.values()):
            counts = ", ".join(
                f"{name} {d.count:,}" for name, d in report.dropped.items() if d.count
            )
            raise UserError(f"{self}: data.filters dropped all {report.read:,} pairs: {counts}")


class FilterReports:
    """The reports of all corpora of a run, in one file: by the name of the store, what was dropped and why.

    They are made while a store is written; for one that is only opened, the file is read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._reports: dict[str, Any] = {}
        # Nothing but a report depends on it.
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._reports = dict(json.loads(path.read_text(encoding="utf-8")))

    def expect(self, corpus: Corpus) -> None:
        """A store is about to be written from the corpus, or only opened."""
        if isinstance(corpus, Filtered):
            corpus.report = FilterReport()

    def of(self, name: str, corpus: Corpus) -> list[str]:
        """The report of the store that was written or opened, or of the corpus that was read without one, as lines to print;
        no line for no filter."""
        if not isinstance(corpus, Filtered):
            if self._reports.pop(name, None):  # of an earlier preparation, with filters
                self._write()
            return []
        if corpus.report.complete:  # else the store was only opened, or one shard of it mended
            files = [str(file) for file in corpus.files()]
            self._reports[name] = {"files": files, **corpus.report.to_json()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write()
        return summary(name, self._reports[name]) if name in self._reports else []

    def _write(self) -> None:
        write_whole(self.path, json.dumps(self._reports, ensure_ascii=False, indent=1))


def filters_of(config: FilterConfig, languages: tuple[str, str]) -> dict[str, Filter]:
    """The filters that are on, by name, in the order in which they look at a pair.

    `duplicates` is the last: of equal pairs it keeps the first that all others keep.

    Raises:
        UserError: a script is unknown.
    """
    found: dict[str, Filter] = {}
    if config.min_length or config.max_length:
        found["length"] = _length(config)
    if config.max_ratio:
        found["ratio"] = _ratio(config)
    if config.copies:
        found["copies"] = lambda source, target: "both sides are equal" if source == target else ""
    if config.script:
        found["script"] = _script(config, languages)
    if config.duplicates:
        seen = HashSet()  # sentences by themselves are equal on whichever side
        found["duplicates"] = lambda source, target: (
            "" if seen.add(f"{source}\t{target}".strip("\t")) else "an earlier pair is equal"
        )
    return found


def _size(config: FilterConfig) -> Callable[[str], int]:
    return len if config.unit == "characters" else lambda text: len(text.split())


def _length(config: FilterConfig) -> Filter:
    size, least, most = _size(config), config.min_length, config.max_length

    def why_dropped(source: str, target: str) -> str:
        for side, text in (("source", source), ("target", target)):
            length = size(text)
            if length and length < least:  # empty sides are counted when the store is written
                return f"{side} has {length} {config.unit}, fewer than {least}"
            if most and length > most:
                return f"{side} has {length} {config.unit}, more than {most}"
        return ""

    return why_dropped


def _ratio(config: FilterConfig) -> Filter:
    size, most = _size(config), config.max_ratio

    def why_dropped(source: str, target: str) -> str:
        left, right = size(source), size(target)
        if left and right and max(left, right) > most * min(left, right):
            return f"{left} {config.unit} against {right}"
        return ""

    return why_dropped


def _script(config: FilterConfig, languages: tuple[str, str]) -> Filter:
    shares = []
    for side, given, language in zip(
        ("source", "target"), (config.source_scripts, config.target_scripts), languages, strict=True
    ):
        scripts = checked(given, f"data.filters.{side}_scripts") or scripts_of(language)
        shares.append((side, ScriptShare(scripts)))
    (_, source_share), (_, target_share) = shares
    least = config.script

    def why_dropped(source: str, target: str) -> str:
        if source_share(source) >= least and target_share(target) >= least:
            return ""
        return " and ".join(
            f"{share(text):.0%} of the {side}'s letters are {' or '.join(share.scripts)}"
            for (side, share), text in zip(shares, (source, target), strict=True)
            if share(text) < least
        )

    return why_dropped


def summary(name: str, report: dict[str, Any]) -> list[str]:
    """A report as lines to print: one for the corpus, and one for each filter that dropped something."""
    lost = report["read"] - report["kept"]
    share = lost / max(report["read"], 1)
    lines = [
        f"filters: {name}: {report['kept']:,} of {report['read']:,} pairs kept, {lost:,} dropped ({share:.2%})"
    ]
    for filter_name, dropped in report["dropped"].items():
        if dropped["count"]:
            first = dropped["examples"][0]
            lines.append(
                f"  {filter_name}: {dropped['count']:,} ({dropped['share']:.2%}), such as pair {first['pair']} "
                f"({first['why']}): {_short(first['source'])} | {_short(first['target'])}"
            )
    return lines


def _short(text: str) -> str:
    return text if len(text) <= 50 else text[:49] + "…"
