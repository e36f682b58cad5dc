"""mtplug-score: scores of files of translations, significance against a baseline, a page that compares them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from mtplug.cli import common
from mtplug.errors import UserError


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-score", "Score translations against references.")
    made.add_argument(
        "hypothesis", type=Path, nargs="+", metavar="HYP", help="one translation a line; may be .gz"
    )
    made.add_argument(
        "--ref", type=Path, nargs="+", action="extend", required=True, help="reference files"
    )
    made.add_argument(
        "--baseline", type=Path, metavar="HYP2", help="the system that each HYP is compared with"
    )
    made.add_argument(
        "--metrics",
        metavar="NAME,NAME",
        help="of any plugin; default bleu,chrf,ter,length_ratio; with settings as in validation.metrics: "
        "'[bleu, {name: chrf, word_order: 0}]'",
    )
    made.add_argument("--lang", default="", help="target language, for tokenisation (zh, ja, …)")
    made.add_argument("--lowercase", action="store_true", help="BLEU without regard to case")
    made.add_argument("--tokenize", default="auto", help="of BLEU: auto, 13a, zh, char, moses, …")
    made.add_argument("--json", action="store_true")
    group = made.add_argument_group("significance, with --baseline")
    group.add_argument("--test", choices=("bootstrap", "randomisation"), default="bootstrap")
    group.add_argument(
        "--samples", type=int, help="default 1000 for bootstrap, 10000 for randomisation"
    )
    group.add_argument("--seed", type=int, default=12345)
    group = made.add_argument_group("a page that compares, with --baseline")
    group.add_argument("--compare", type=Path, metavar="OUT.html", help="where to write it")
    group.add_argument(
        "--source", type=Path, metavar="SRC", help="source text to show, or for metrics"
    )
    group.add_argument("--source-lang", default="", help="its language")
    group.add_argument(
        "--train", type=Path, help="target side of the training data, to count words in"
    )
    group.add_argument("--sentences", type=int, default=15, help="how many to show of each kind")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    _check(args)
    from mtplug.evaluation import Score, counted, scored
    from mtplug.evaluation.files import STANDARD, named_metrics, parallel_lines
    from mtplug.evaluation.significance import difference

    names = STANDARD if args.metrics is None else args.metrics
    metrics = named_metrics(names, args.lang, args.tokenize, args.lowercase)
    if args.source and not args.compare and not any(m.takes_sources for m in metrics):
        raise UserError(
            "--source is for the page that --compare OUT.html writes, or a metric that takes it; add one"
        )
    paths = [args.hypothesis[0], *args.ref, *args.hypothesis[1:]]
    paths += [path for path in (args.baseline, args.source) if path]
    lines = dict(zip(paths, parallel_lines(paths), strict=True))
    references = [lines[path] for path in args.ref]
    scores: dict[Path, list[Score]] = {}
    statistics: dict[Path, list[Any]] = {}
    for path in dict.fromkeys([*args.hypothesis, *filter(None, [args.baseline])]):
        scores[path], statistics[path] = [], []
        for metric in metrics:  # each at once, since a metric keeps what both are computed from
            texts = lines[path], references, lines.get(args.source)
            scores[path].append(scored(metric, *texts))
            if args.baseline:
                statistics[path].append(counted(metric, *texts))
    tests = {
        path: [
            difference(ours, theirs, args.test, args.samples or 0, args.seed)
            for ours, theirs in zip(statistics[path], statistics[args.baseline], strict=True)
        ]
        for path in args.hypothesis
        if args.baseline
    }
    if args.compare:
        _write_page(args, lines, metrics, scores, tests)
    if args.json:
        print(json.dumps(_rows(args, metrics, scores, tests), indent=1))
        return 0
    for path in args.hypothesis:
        if len(args.hypothesis) > 1:
            print(f"{path}:")
        for i, score in enumerate(scores[path]):
            print(score)
            if args.baseline:
                print(f"  {_told(score, scores[args.baseline][i], tests[path][i])}")
    if args.compare:
        print(f"wrote {args.compare}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples {args.samples}: a test needs at least 1, better 1000")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be 0 or more")
    if args.sentences < 0:
        raise UserError(f"--sentences {args.sentences}: must be 0 or more")
    if args.compare and not args.baseline:
        raise UserError("--compare needs --baseline HYP2, the system to compare with")
    if args.compare:
        inputs = [
            *(("HYP", path) for path in args.hypothesis),
            *(("--ref", path) for path in args.ref),
        ]
        inputs += [(f"--{key}", getattr(args, key)) for key in ("baseline", "source", "train")]
        common.refuse_overwriting("--compare", args.compare, inputs)
    if not args.compare and args.train:
        raise UserError("--train is for the page that --compare OUT.html writes; add that option")


def _told(score: Any, base: Any, tested: Any) -> str:
    text = f"baseline {base.value:.2f}, difference {score.value - base.value:+.2f}"
    if tested is None:
        return f"{text} (this metric has no numbers by sentence, so it cannot be tested)"
    if tested.interval is None:
        return f"{text}, p = {tested.p:.4f} ({tested.samples} random swaps)"
    low, high = tested.interval
    return (
        f"{text} (95 % of {tested.samples} resamples: {low:+.2f} … {high:+.2f}), p = {tested.p:.4f}"
    )


def _rows(args: argparse.Namespace, metrics: list[Any], scores: Any, tests: Any) -> list[Any]:
    rows = []
    for path in args.hypothesis:
        for i, (metric, score) in enumerate(zip(metrics, scores[path], strict=True)):
            row = {
                "system": str(path),
                "metric": score.label,
                "score": score.value,
                "higher_is_better": metric.higher_is_better,
                "signature": score.signature,
            }
            if args.baseline:
                base, tested = scores[args.baseline][i].value, tests[path][i]
                row |= {"baseline": base, "difference": score.value - base}
                row |= dataclasses.asdict(tested) if tested else {"p": None}
            rows.append(row)
    return rows


def _write_page(
    args: argparse.Namespace, lines: Any, metrics: list[Any], scores: Any, tests: Any
) -> None:
    from mtplug.evaluation.files import lines_of
    from mtplug.evaluation.page import Comparison, page

    paths = [args.baseline, *args.hypothesis]
    made = page(
        Comparison(
            names=_short(paths),
            systems=[lines[path] for path in paths],
            references=[lines[path] for path in args.ref],
            metrics=metrics,
            scores=[scores[path] for path in paths],
            differences=[tests[path] for path in args.hypothesis],
            source=lines[args.source] if args.source else None,
            train=lines_of(args.train) if args.train else None,
            source_lang=args.source_lang,
            target_lang=args.lang,
            sentences=args.sentences,
        )
    )
    args.compare.parent.mkdir(parents=True, exist_ok=True)
    args.compare.write_text(made, encoding="utf-8")


def _short(paths: list[Path]) -> list[str]:
    """Names of files without what they all begin with."""
    if len({path.name for path in paths}) == len(set(paths)):
        return [path.name for path in paths]
    folders = os.path.commonpath([path.absolute().parent for path in paths])
    return [os.path.relpath(path.absolute(), folders) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
