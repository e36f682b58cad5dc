"""Reading files of translations, and the metrics that commands score them with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mtplug.config.build import components_from_text
from mtplug.data.corpora.files import opened, without_mark
from mtplug.errors import UserError
from mtplug.evaluation.metrics import Metric

STANDARD = "bleu,chrf,ter,length_ratio"


def lines_of(file: Path) -> list[str]:
    """The lines of a text file, of a packed one (`.gz`, `.xz`, `.zst`) after unpacking.

    Only a line feed ends a line: other separators of Unicode occur inside of translations.

    Raises:
        UserError: the file is missing, empty or not UTF-8.
    """
    try:
        with opened(file) as stream:
            lines = without_mark(stream.read(), file).decode().split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: not valid UTF-8") from None
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{file} is empty")
    return [line.removesuffix("\r") for line in lines]


def parallel_lines(files: list[Path]) -> list[list[str]]:
    """The lines of files that must have equally many.

    Raises:
        UserError: as `lines_of`, or a file has another number of lines than the first.
    """
    sides = []
    for file in files:
        sides.append(lines_of(file))
        if len(sides[-1]) != len(sides[0]):
            raise UserError(
                f"{file} has {len(sides[-1])} lines, {files[0]} has {len(sides[0])}; both need "
                "the same number"
            )
    return sides


def named_metrics(
    names: str = STANDARD, lang: str = "", tokenize: str = "auto", lowercase: bool = False
) -> list[Metric]:
    """Metrics by name, separated by commas, built-in or of plugins.

    Args:
        names: or the metrics with their settings, as YAML of `validation.metrics`: from `{` or `[` on.
        lang: code of the target language.
        tokenize: for metrics that have such a setting, and were given none.
        lowercase: likewise.

    Raises:
        UserError: there is no such metric, or it does not take what it was given.
    """
    metrics: list[Metric] = []
    found, origins = components_from_text("metrics", names, "--metrics")
    for i, selected in enumerate(found):
        name, config = selected.name, selected.config
        fields = {f.name: f for f in dataclasses.fields(config)}
        for key, value in (("tokenize", tokenize), ("lowercase", lowercase)):
            if origins.get(f"--metrics.{i}.{key}", "").startswith("default"):
                options = fields[key].metadata.get("options", (value,))
                if value not in options:
                    raise UserError(
                        f"--{key} {value}: metric {name} does not know it; known: {', '.join(options)}"
                    )
                setattr(config, key, value)
        try:
            metrics.append(selected.build(lang))
        except (KeyError, ValueError, AssertionError) as error:
            cut = f", tokenize {config.tokenize}" if "tokenize" in fields else ""
            raise UserError(f"metric {name}{cut}: {error}") from None
    if not metrics:
        raise UserError("--metrics names no metric; mtplug-plugins list shows them")
    return metrics
