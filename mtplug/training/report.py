"""report.html: a run on one page, drawn anew as it is validated."""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mtplug
from mtplug.files import write_whole
from mtplug.pages import document, safe, table
from mtplug.registry import require_range
from mtplug.training.trackers import Drawn, read_events
from mtplug.training.validation import read_samples

T = TypeVar("T")
POINTS = 1000  # of a curve; more cannot be told apart on the page
ROWS = 12  # of the table of validations


@dataclass
class ReportConfig:
    """report.html: curves, translations through time, scores, speed and environment on one page."""

    samples: int = 6
    """sentences whose translations are shown"""
    moments: int = 6
    """validations of which each sentence's translation is shown, evenly spread"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "samples", "moments")


class Report(Drawn):
    """Writes the page from what the run's folder holds: metrics.jsonl, samples, environment, configuration."""

    config: ReportConfig
    ALWAYS = ("end", "test")

    def draw(self) -> None:
        write_whole(self.run_dir / "report.html", page(self.run_dir, self.config))


def page(run_dir: Path, config: ReportConfig) -> str:
    """The report of a run's folder, as HTML; what the folder lacks is left out."""
    events = read_events(run_dir / "metrics.jsonl")
    update = max((e["update"] for e in events), default=0)
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    ends = [e["reason"] for e in events if e["event"] == "end"]
    state = f"ended: {ends[-1]}" if ends else "still training"
    parts = [
        _summary(events),
        _scores(events),
        _curves(events),
        _samples(run_dir / "samples", config),
        _notes(events),
        _environment(run_dir / "environment.json"),
        _configuration(run_dir / "config.yaml"),
    ]
    below = f"After update {update:,}; {state}. Written {now}."
    return document(f"Run {run_dir.name}", below, "\n".join(parts))


def _summary(events: list[dict[str, Any]]) -> str:
    starts = [e for e in events if e["event"] == "start"]
    train = [e for e in events if e["event"] == "train"]
    best = [e for e in events if e["event"] == "validation" and e["best"]]
    rows = []
    if starts:
        last = starts[-1]
        rows.append(
            ("Parameters", f"{last['parameters']:,}, {last['trainable']:,} of them trained")
        )
        rows.append(("Device", f"{last['device']}, {last['processes']} process(es)"))
        if len(starts) > 1:
            resumed = ", ".join(f"{e['update']:,}" for e in starts[1:])
            rows.append(("Resumed after update", resumed))
    if train:
        last = train[-1]
        rates = [e["tokens_per_second"] for e in train]
        rows.append(("Epoch", f"{last['epoch']:,}"))
        rows.append(
            ("Time, validation included", str(datetime.timedelta(seconds=round(last["seconds"]))))
        )
        rows.append(
            (
                "Target tokens per second",
                f"{statistics.median(rates):,.0f} (median; {min(rates):,.0f} to {max(rates):,.0f})",
            )
        )
        rows.append(("Padding", f"{statistics.fmean(e['padding'] for e in train):.1%} of batches"))
    if best:
        rows.append(("Best validation", f"update {best[-1]['update']:,}"))
    entries = "".join(f"<dt>{safe(k)}</dt><dd>{safe(v)}</dd>" for k, v in rows)
    return f"<dl>{entries}</dl>" if rows else ""


def _scores(events: list[dict[str, Any]]) -> str:
    tests = {e["split"]: e for e in events if e["event"] == "test"}
    parts = ["<h2>Scores</h2>"] if tests or any(e["event"] == "validation" for e in events) else []
    for split, test in tests.items():
        texts = "".join(f"<li><code>{safe(text)}</code></li>" for text in test["texts"])
        parts.append(
            f"<h3>Test set {safe(split)}, checkpoint {safe(test['checkpoint'])}</h3><ul>{texts}</ul>"
        )
    valid = [e for e in events if e["event"] == "validation" and e["scores"]]
    if valid:
        names = list(valid[-1]["scores"])
        best = max((e["update"] for e in valid if e["best"]), default=None)
        shown = [e for e in valid if e in spread(valid, ROWS) or e["update"] == best]
        rows = []
        for e in shown:
            star = " (best)" if e["update"] == best else ""
            cells = [f"{e['scores'][n]:.3f}" if n in e["scores"] else "–" for n in names]
            rows.append((f"{e['update']:,}{star}", cells))
        some = f", {len(shown)} of {len(valid)}" if len(shown) < len(valid) else ""
        parts.append(f"<h3>Validation{some}</h3>{table(['Update', *names], rows)}")
        last = next((e for e in valid if e["update"] == best), valid[-1])
        if corpora := last.get("corpora"):
            names = list(next(iter(corpora.values())))
            rows = [
                (safe(label), [f"{own[n]:.3f}" for n in names]) for label, own in corpora.items()
            ]
            parts.append(
                f"<h3>Its corpora at update {last['update']:,}</h3>{table(['Corpus', *names], rows)}"
            )
    return "\n".join(parts)


def _curves(events: list[dict[str, Any]]) -> str:
    train = [e for e in events if e["event"] == "train"]
    if not train:
        return ""
    try:
        from mtplug.training.curves import svg
    except ImportError:
        picture = "<p>Not drawn: matplotlib is not installed.</p>"
    else:
        kept = spread(train, POINTS) + [e for e in events if e["event"] == "validation"]
        picture = f"<figure>{svg(kept)}</figure>"
    return f"<h2>Curves</h2>\n{picture}"


def _samples(folder: Path, config: ReportConfig) -> str:
    files = sorted(folder.glob("valid-step-*.txt"))
    if not files:
        return ""
    moments = [
        (int(f.stem.rsplit("-", 1)[1]), read_samples(f)) for f in spread(files, config.moments)
    ]
    parts = ["<h2>Translations through time</h2>"]
    for source, reference, _ in spread(moments[-1][1], config.samples):
        rows = [("Source", source), ("Reference", reference)]
        for update, samples in moments:
            found = [h for s, r, h in samples if (s, r) == (source, reference)]
            rows += [(f"Update {update:,}", h) for h in found[:1]]
        entries = "".join(
            f'<dt>{safe(label)}</dt><dd dir="auto">{safe(text) or "(empty)"}</dd>'
            for label, text in rows
        )
        parts.append(f"<article><dl>{entries}</dl></article>")
    return "\n".join(parts)


def _notes(events: list[dict[str, Any]]) -> str:
    notes = [e for e in events if e["event"] == "note"]
    lines = "".join(f"<li>update {e['update']:,}: {safe(e['text'])}</li>" for e in notes[-50:])
    return f"<h2>Notes</h2><ul>{lines}</ul>" if notes else ""


def _environment(file: Path) -> str:
    if not file.is_file():
        return ""
    e = json.loads(file.read_text(encoding="utf-8"))
    versions = {"mtplug": e["mtplug"], "python": e["python"], **e["versions"]}
    plugins = {f"{p['distribution']} {p['version']}: {p['name']}" for p in e["plugins"]}
    rows = [
        ("Processor", f"{e['processor']}, {e['threads']} thread(s)"),
        ("GPUs", ", ".join(e["gpus"]) or "none"),
        ("Platform", e["platform"]),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("Plugins", ", ".join(sorted(plugins))),
        ("Seed", str(e["seed"])),
    ]
    entries = "".join(f"<dt>{safe(k)}</dt><dd>{safe(v)}</dd>" for k, v in rows)
    sums = table(
        ["Data", "SHA-256"], [(safe(k), [f"<code>{safe(v)}</code>"]) for k, v in e["data"].items()]
    )
    return f"<h2>Environment</h2><dl>{entries}</dl><details><summary>Data</summary>{sums}</details>"


def _configuration(file: Path) -> str:
    if not file.is_file():
        return ""
    text = "\n".join(map(safe, file.read_text(encoding="utf-8").splitlines()))
    return (
        f"<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{text}</pre></details>"
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spread, the last always among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


@mtplug.hookimpl
def register_trackers(register):
    register("report", Report, ReportConfig)
