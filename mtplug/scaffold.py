"""`mtplug-plugins new`: a complete, installable, tested plugin package.

Each kind's module is a real file in `mtplug/templates`, and so is its test; here they are only named
and put together.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import mtplug
from mtplug.errors import UserError, did_you_mean
from mtplug.files import whole_folder
from mtplug.plugins import host
from mtplug.registry import plural, singular

TEMPLATES = Path(__file__).with_name("templates")

USAGE: dict[str, str] = {
    "architecture": "mtplug-train config.yaml architecture.name=NAME",
    "criterion": "mtplug-train config.yaml criterion.name=NAME",
    "task": "mtplug-train config.yaml task.name=NAME",
    "peft_method": "mtplug-train config.yaml peft.name=NAME",
    "position_encoding": "mtplug-train config.yaml architecture.position.name=NAME",
    "attention_backend": "mtplug-train config.yaml architecture.attention.backend=NAME",
    "tokenizer": "mtplug-train config.yaml 'tokenizer={name: NAME}'",
    "corpus": "mtplug-train config.yaml 'data.train={name: NAME, path: pairs.txt}'",
    "optimizer": "mtplug-train config.yaml 'optimizer={name: NAME}'",
    "lr_scheduler": "mtplug-train config.yaml lr_scheduler.name=NAME",
    "search_strategy": "mtplug-translate RUN search.name=NAME",
    "metric": "mtplug-train config.yaml 'validation.metrics=[{name: bleu}, {name: NAME}]'",
    "tracker": "mtplug-train config.yaml 'logging.trackers=[{name: jsonl}, {name: NAME}]'",
    "exporter": "mtplug-export RUN --format NAME --output exported",
    "benchmark": "mtplug-bench run NAME",
    "hooks": "",
}
"""Each kind that there is a template for, and the command that uses the component."""


def write_package(name: str, kinds: list[str], where: Path) -> Path:
    """Write the package `mtplug-NAME` below `where`.

    Args:
        name: lower-case letters and digits, words joined by `_` or `-`.
        kinds: what it adds: keys of `USAGE`, among them `hooks` for the life of a run, or as `plural` takes
            them.

    Returns:
        The package's folder.

    Raises:
        UserError: a kind has no template, the name is none or taken, or the folder cannot be made.
    """
    short = name.replace("-", "_").removeprefix("mtplug_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", short) or keyword.iskeyword(short):
        raise UserError(f"'{name}' is no name for a package; use lower-case letters, digits, '_'")
    kinds = _checked(kinds)
    for kind in kinds:
        if kind != "hooks" and short in host().names(plural(kind)):
            raise UserError(f"the {kind} '{short}' is there already; choose another name")
    package, dist = f"mtplug_{short}", short.replace("_", "-")
    folder = where / f"mtplug-{dist}"
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another name or --folder")

    use = {kind: f"`{USAGE[kind].replace('NAME', short)}`" for kind in kinds}
    if "hooks" in use:
        use["hooks"] = f"in every run, once installed; `--block {short}_hooks` leaves it out"
    values = {
        # The entry points are named apart from each other, so that each can be blocked.
        "ENTRIES": "\n".join(f'{short}_{kind} = "{package}.{kind}"' for kind in kinds),
        "USAGE": "\n".join(f"- {k} (`{package}/{k}.py`): {use[k]}" for k in kinds),
        "KINDS": ", ".join(kinds),
        "PACKAGE": package,
        "DIST": dist,
        "VERSION": mtplug.__version__,
        "NAME": short,
    }

    def write(template: str, to: Path) -> None:
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        text = re.sub(rf"\b({'|'.join(values)})\b", lambda found: values[found[0]], text)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text.strip() + "\n", encoding="utf-8")

    try:
        with whole_folder(folder) as made:
            for kind in kinds:
                write(f"{kind}.py", made / package / f"{kind}.py")
                write(f"test_{kind}.py", made / "tests" / f"test_{kind}.py")
            about = f'"""mtplug-{dist}: {values["KINDS"]}."""\n'
            (made / package / "__init__.py").write_text(about)
            write("package/pyproject.txt", made / "pyproject.toml")
            write("package/README.md", made / "README.md")
            write("package/ci.yml", made / ".github" / "workflows" / "test.yml")
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


def _checked(kinds: list[str]) -> list[str]:
    """As `USAGE` has them, each once."""
    found = []
    for asked in kinds:
        kind = asked if asked in USAGE else singular(plural(asked))
        if kind not in USAGE:
            raise UserError(f"--with {asked}: no template{did_you_mean(asked, USAGE)}")
        found.append(kind)
    if not found:
        raise UserError(f"--with names no kind; there are {', '.join(USAGE)}")
    return list(dict.fromkeys(found))
