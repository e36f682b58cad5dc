"""`mtplug-score --compare`: systems against a baseline on one page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mtplug.evaluation.analysis import (
    Bucket,
    by_frequency,
    by_length,
    histogram,
    sentence_scores,
)
from mtplug.evaluation.charts import bars, difference_bars
from mtplug.evaluation.metrics import Metric, Score
from mtplug.evaluation.significance import Difference
from mtplug.evaluation.words import Span, differing, is_unspaced, spans
from mtplug.pages import document, language, safe, table

LONGEST = 400  # tokens of a sentence that are shown
SMALL = 0.05  # a p below this is printed bold


@dataclass
class Comparison:
    """What a page shows.

    Attributes:
        names: of the systems, the baseline first.
        systems: their translations.
        scores: by system, then by metric.
        differences: likewise, without the baseline; None where a metric cannot be tested.
        train: target-language text to count frequencies in; None: the references.
        sentences: how many sentences to show that got better, and as many that got worse.
    """

    names: list[str]
    systems: list[list[str]]
    references: list[list[str]]
    metrics: list[Metric]
    scores: list[list[Score]]
    differences: list[list[Difference | None]]
    source: list[str] | None = None
    train: list[str] | None = None
    source_lang: str = ""
    target_lang: str = ""
    sentences: int = 15
    unit: str = field(init=False)

    def __post_init__(self) -> None:
        self.unit = "characters" if is_unspaced(self.references[0]) else "words"


def page(c: Comparison) -> str:
    """The page as HTML: no script, no network, light or dark as the reader's system is."""
    title = f"{', '.join(c.names[1:])} against {c.names[0]}"
    count = f"{len(c.references[0]):,} sentences, {len(c.references)} reference(s)"
    body = "\n".join([_scores(c), _lengths(c), _frequencies(c), _sentences(c)])
    return document(title, f"{count}. Made by mtplug-score.", body)


def _scores(c: Comparison) -> str:
    head = [f"{s.label}{_arrow(m)}" for s, m in zip(c.scores[0], c.metrics, strict=True)]
    rows = []
    for i, name in enumerate(c.names):
        cells = []
        for j, score in enumerate(c.scores[i]):
            tested = c.differences[i - 1][j] if i else None
            cells.append(_cell(score, c.metrics[j], c.scores[0][j], tested, i == 0))
        rows.append((f'<span class="key s{i % 6}"></span>{safe(name)}', cells))
    tests = [d for row in c.differences for d in row if d]
    said = ""
    if tests:
        kind = (
            "paired bootstrap, {} resamples"
            if tests[0].interval
            else "approximate randomisation, {} swaps"
        )
        said = (
            f"<p>Below each score: the difference from {safe(c.names[0])} and p, by {kind.format(tests[0].samples)}, "
            f"seed {tests[0].seed}"
            + ("; in brackets what 95 % of the resamples lie between" if tests[0].interval else "")
            + f". Bold where p &lt; {SMALL}. p is not corrected for the number of comparisons.</p>"
        )
    terms = "".join(
        f"<dt>{safe(s.label)}</dt><dd><code>{safe(s.signature)}</code></dd>" for s in c.scores[0]
    )
    arrows = '<p class="soft">↑ higher is better, ↓ lower is better.</p>'
    return f"<h2>Scores</h2>\n{said}{table(['System', *head], rows)}{arrows}<h3>Signatures</h3><dl>{terms}</dl>"


def _cell(score: Score, metric: Metric, base: Score, tested: Difference | None, first: bool) -> str:
    digits = 3 if metric.higher_is_better is None else 2  # ratios are near 1
    if first:
        return f"{score.value:.{digits}f}"
    gain = score.value - base.value
    up = metric.higher_is_better
    kind = (
        "" if up is None or round(gain, digits) == 0 else "better" if (gain > 0) == up else "worse"
    )
    text = f"{score.value:.{digits}f}<small><span class='{kind}'>{_signed(gain, digits)}</span>"
    if tested is None:
        return text + " (not tested)</small>"
    if tested.interval:
        text += f" [{_signed(tested.interval[0], digits)} … {_signed(tested.interval[1], digits)}]"
    p = f"p = {tested.p:.4f}"
    return f"{text}<br>{f'<strong>{p}</strong>' if tested.p < SMALL else p}</small>"


def _lengths(c: Comparison) -> str:
    parts = [
        "<h2>By length of the sentence</h2>\n"
        f"<p>Scores of sentences whose (first) reference has that many {c.unit}.</p>"
    ]
    made = [(m, by_length(m, c.systems, c.references, c.source)) for m in c.metrics]
    for place, (metric, buckets) in enumerate((m, b) for m, b in made if b):
        title = f"{metric.label}{_arrow(metric)}"
        shown = bars(f"{title} by length of the reference", f"{c.unit} of the reference", buckets, c.names)  # fmt: skip
        shown += _buckets(c, "Length", "Sentences", buckets)
        folded = f"<details><summary>{safe(title)}</summary>{shown}</details>"
        parts.append(folded if place else f"<h3>{safe(title)}</h3>{_legend(c)}{shown}")
    return "\n".join(parts)


def _frequencies(c: Comparison) -> str:
    buckets = by_frequency(c.systems, c.references[0], c.train)
    where = "training data" if c.train else "the reference"
    unit = f"{c.unit} by how often they occur in {where}"
    return (
        "<h2>By frequency of the word</h2>\n"
        f"<p>F-measure in percent (↑) of {c.unit} grouped by how often they occur in {where}; one is right "
        f"as often as the first reference of its sentence has it.</p>{_legend(c)}"
        + bars(f"F-measure of {unit}", f"occurrences in {where}", buckets, c.names)
        + _buckets(c, "Occurrences", f"{c.unit.capitalize()} of the reference", buckets)
    )


def _sentences(c: Comparison) -> str:
    base = sentence_scores(c.systems[0], c.references)
    parts = [
        "<h2>Sentence by sentence</h2>\n<p>Measured by chrF2++ of each sentence. "
        '<mark class="extra">Underlined</mark>: not in the (first) reference, or elsewhere in it. '
        '<mark class="missing">Dotted</mark>: in the reference, but in neither of the two translations.</p>'
    ]
    for name, system in zip(c.names[1:], c.systems[1:], strict=True):
        scores = sentence_scores(system, c.references)
        change = scores - base
        better, worse = int((change > 1e-9).sum()), int((change < -1e-9).sum())
        equal = len(change) - better - worse
        told = f"{better:,} sentences better, {worse:,} worse, {equal:,} the same"
        title = f"Differences of sentences' chrF2++, {name} minus {c.names[0]}: {told}"
        parts.append(
            f"<h3>{safe(name)} against {safe(c.names[0])}</h3><p>{told}. The grey bar is around zero.</p>"
        )
        parts.append(difference_bars(title, "difference of chrF2++", histogram(change)))
        order = np.argsort(-change, kind="stable")
        gained = [int(i) for i in order if change[i] > 1e-9][: c.sentences]
        lost = [int(i) for i in order[::-1] if change[i] < -1e-9][: c.sentences]
        for said, chosen in (("gained", gained), ("lost", lost)):
            if chosen:
                parts.append(f"<h3>Sentences that {said} most</h3>")
                parts += [_sentence(c, i, name, system, base[i], scores[i]) for i in chosen]
    return "\n".join(parts)


def _sentence(
    c: Comparison, i: int, name: str, system: list[str], before: float, after: float
) -> str:
    reference = c.references[0][i]
    texts = (c.systems[0][i], system[i])
    missed = [set(_inside(reference, differing(_cut(reference), _cut(t)))) for t in texts]
    missing = sorted(missed[0] & missed[1])
    rows = [] if c.source is None else [("Source", _marked(c.source[i], [], ""), c.source_lang)]
    rows.append(("Reference", _marked(reference, missing, "missing"), c.target_lang))
    more = enumerate((r[i] for r in c.references[1:]), start=2)
    rows += [(f"Reference {n}", _marked(text, [], ""), c.target_lang) for n, text in more]
    for label, text, score in ((c.names[0], texts[0], before), (name, texts[1], after)):
        marked = _marked(text, differing(_cut(text), _cut(reference)), "extra")
        rows.append((f"{label} ({score:.1f})", marked, c.target_lang))
    entries = "".join(
        f'<dt>{safe(label)}</dt><dd dir="auto"{language(lang)}>{text}</dd>'
        for label, text, lang in rows
    )
    kind = "better" if after > before else "worse"
    return (
        f'<article><h4>Sentence {i + 1:,}: <span class="{kind}">{_signed(after - before)}</span></h4>'
        f"<dl>{entries}</dl></article>"
    )


def _cut(text: str) -> str:
    places = spans(text)
    return text if len(places) <= LONGEST else text[: places[LONGEST - 1][1]]


def _inside(text: str, parts: list[Span]) -> list[Span]:
    """The single tokens within the parts."""
    return [s for s in spans(_cut(text)) if any(a <= s[0] and s[1] <= b for a, b in parts)]


def _marked(text: str, parts: Sequence[Span], kind: str) -> str:
    """Text as HTML with marks around its parts; neighbours that only space divides share one."""
    shown, joined = _cut(text), list[list[int]]()
    for a, b in parts:
        if joined and not text[joined[-1][1] : a].strip():
            joined[-1][1] = b
        else:
            joined.append([a, b])
    pieces, end = [], 0
    for a, b in joined:
        pieces.append(f'{safe(shown[end:a])}<mark class="{kind}">{safe(shown[a:b])}</mark>')
        end = b
    pieces.append(safe(shown[end:]))
    if len(shown) < len(text):
        pieces.append(f'<span class="soft"> … and {len(text) - len(shown):,} more characters</span>')  # fmt: skip
    return "".join(pieces) if text.strip() else '<span class="soft">(empty)</span>'


def _buckets(c: Comparison, first: str, second: str, buckets: list[Bucket]) -> str:
    rows = [
        (safe(b.label), [f"{b.count:,}", *("–" if v is None else f"{v:.2f}" for v in b.values)])
        for b in buckets
    ]
    return table([first, second, *c.names], rows)


def _legend(c: Comparison) -> str:
    keys = (
        f'<span class="key s{i % 6}"></span>{safe(name)} &emsp;' for i, name in enumerate(c.names)
    )
    return f"<p>{''.join(keys)}</p>"


def _arrow(metric: Metric) -> str:
    return {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
