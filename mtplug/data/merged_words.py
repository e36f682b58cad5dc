"""Tokenizer `words`: words between blanks, whole or cut by given merge operations.

For text that was tokenised beforehand, as fairseq, JoeyNMT, OpenNMT-py and Sockeye are fed: with the codes
of subword-nmt or fastBPE (byte pair encoding, Sennrich et al. 2016), whose pieces end with `@@` within a word.
"""

from __future__ import annotations

import functools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import mtplug
from mtplug.data.tokenizers import (
    EOS,
    MOST,
    PAD,
    SPECIAL,
    UNK,
    Tokenizer,
    check_given,
    check_models,
    check_target_model,
)
from mtplug.data.words import SPACE
from mtplug.errors import UserError
from mtplug.files import read_json
from mtplug.registry import require_range

END = "</w>"
"""What merge operations write behind the last character of a word."""
GLUE = "@@"
UNDO = {GLUE: f"sed 's/{GLUE} //g'", SPACE: f"sed 's/ //g; s/{SPACE}/ /g'"}
"""What joins text again that was cut, by what it is told by: the mark of subword-nmt, and SentencePiece's."""


@dataclass
class WordsConfig:
    """Words between blanks, whole or cut by merge operations; the vocabulary is what the training corpora have.

    Text that is cut into subwords already is refused."""

    codes: str = ""
    """merge operations of subword-nmt or fastBPE; empty: words stay whole"""
    vocab_size: int = 0
    """pieces, the most frequent and special symbols included; 0: all"""
    joint: bool = True
    """one vocabulary for both languages"""
    user_symbols: list[str] = field(default_factory=list)
    """words that are never cut, and are in the vocabulary whatever the corpora have"""
    sampling: float = 0.0
    """with `codes`: probability that a merge is left out in training, other ones in each epoch (BPE-dropout,
    Provilkov et al. 2020)"""
    model: str = ""
    """a run whose vocabulary and codes are taken, or a file with a piece on each line (what stands behind it is
    left out, as counts in fairseq's dict.txt), and behind them what these lack of `user_symbols`; empty: the
    vocabulary is what the training corpora have"""
    target_model: str = ""
    """the target's file where `joint` is false and `model` is the source's"""

    def __post_init__(self) -> None:
        if self.vocab_size:
            require_range(self, UNK + 2, math.inf, "vocab_size")
        require_range(self, 0, 1, "sampling")
        if self.sampling and not (self.codes or self.model):
            raise ValueError("sampling leaves out merges, of which there are none without `codes`")
        if several := [symbol for symbol in self.user_symbols if len(symbol.split()) != 1]:
            raise ValueError(f"user_symbols: '{several[0]}' is not one word")
        check_target_model(self)


class Words(Tokenizer):
    """A vocabulary, and the merge operations that cut words into its pieces.

    Args:
        pieces: by id.
        codes: the text of a file of merge operations; empty: words stay whole.
        where: the file, for messages.
        sampling: probability that a merge is left out in `sample`.
        symbols: words that are never cut.

    Raises:
        UserError: a line of `codes` is no merge operation.
    """

    def __init__(
        self,
        pieces: list[str],
        codes: str = "",
        where: str = "codes",
        sampling: float = 0.0,
        symbols: Iterable[str] = (),
    ):
        self.pieces, self.codes, self.sampling = pieces, codes, sampling
        self.samples, self.symbols = sampling > 0, dict.fromkeys(symbols)
        # What stands for padding and ends is no word, should a text have it.
        self.ids = {piece: i for i, piece in enumerate(pieces) if i > UNK}
        self.ranks, self.old = _operations(codes, where)
        self._cut = functools.lru_cache(1 << 16)(self._merged)

    def __reduce__(self) -> tuple:  # to another process, without what is remembered of words
        return Words, (self.pieces, self.codes, "codes", self.sampling, list(self.symbols))

    def cut(self, text: str) -> list[str]:
        """The pieces of a text, also those that are not in the vocabulary."""
        words = text.split()
        return [piece for word in words for piece in self._cut(word)] if self.codes else words

    def _merged(self, word: str, draw: Callable[[], float] | None = None) -> tuple[str, ...]:
        """The pieces of a word: of neighbours those of the earliest operation are merged, again and again.

        Args:
            word: without blanks.
            draw: numbers from 0 to 1; where one is below `sampling`, a pair is passed over this time.
        """
        if word in self.symbols:
            return (word,)
        parts = [*word, END] if self.old else [*word[:-1], word[-1] + END]
        while len(parts) > 1:
            found = {
                i: self.ranks[pair]
                for i, pair in enumerate(zip(parts, parts[1:], strict=False))
                if pair in self.ranks and (draw is None or draw() >= self.sampling)
            }
            if not found:
                break
            best = min(found.values())
            merged, i = [], 0
            while i < len(parts):
                both = found.get(i) == best
                merged.append(parts[i] + parts[i + 1] if both else parts[i])
                i += 1 + both
            parts = merged
        if parts[-1] == END:
            parts.pop()
        parts[-1] = parts[-1].removesuffix(END)
        return (*(part + GLUE for part in parts[:-1]), parts[-1])

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[self.ids.get(piece, UNK) for piece in self.cut(text)] for text in texts]

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        if not self.samples:
            return self.encode(texts)
        rows = []
        for text, seed in zip(texts, seeds, strict=True):
            draw = random.Random(seed).random
            pieces = [piece for word in text.split() for piece in self._merged(word, draw)]
            rows.append([self.ids.get(piece, UNK) for piece in pieces])
        return rows

    def unfit(self, texts: Iterable[str]) -> str:
        return "" if self._of_pieces else _unfit(_mark(_kinds(_words(texts))))

    @functools.cached_property
    def _of_pieces(self) -> bool:
        """Does text come cut, as where a model made elsewhere was imported without its codes?"""
        return not self.codes and bool(_mark(_kinds(self.pieces)))

    def decode(self, ids: list[list[int]]) -> list[str]:
        texts = [" ".join(self.tokens([i for i in row if i not in (PAD, EOS)])) for row in ids]
        if not self.codes:
            return texts
        return [text.replace(f"{GLUE} ", "").removesuffix(GLUE) for text in texts]

    def tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]

    def save(self, folder: Path, side: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.pieces, ensure_ascii=False)
        (folder / f"{side}.pieces.json").write_text(text, encoding="utf-8")
        (folder / f"{side}.codes").write_text(self.codes, encoding="utf-8", newline="")
        if self.symbols:  # those of earlier versions had none, and no file
            text = json.dumps(list(self.symbols), ensure_ascii=False)
            (folder / f"{side}.symbols.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, side: str) -> Words:
        codes, given = folder / f"{side}.codes", folder / f"{side}.symbols.json"
        try:
            pieces = read_json(folder / f"{side}.pieces.json", "restore it", list)
            symbols = read_json(given, "restore it", list) if given.exists() else ()
            return cls(pieces, _read(codes), str(codes), symbols=symbols)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} has no words of side {side}: {error}") from None


def _read(file: Path) -> str:
    with file.open(encoding="utf-8", newline="") as opened:
        return opened.read()


def _operations(codes: str, where: str) -> tuple[dict[tuple[str, str], int], bool]:
    """The rank of each pair, and whether the end of a word is a symbol of its own, as in subword-nmt's first format.

    Lines are `left right`, of fastBPE with a count behind; a line `#version: 0.2` may come first.
    """
    # Not splitlines: some of what it splits at are characters that pieces may have.
    lines = [line.rstrip("\r") for line in codes.split("\n")]
    version = lines.pop(0).partition(":")[2].strip() if codes.startswith("#version:") else ""
    ranks: dict[tuple[str, str], int] = {}
    counts = 0
    for number, line in enumerate(lines, start=2 if version else 1):
        if not line.strip(" "):
            continue
        fields = line.strip(" ").split(" ")
        if len(fields) not in (2, 3):
            raise UserError(
                f"{where}:{number}: expected two symbols, and perhaps a count, got '{line}'"
            )
        counts += len(fields) == 3
        ranks.setdefault((fields[0], fields[1]), len(ranks))
    return ranks, version in ("", "0.1") and not counts


def _words(texts: Iterable[str]) -> Iterable[str]:
    return (word for text in texts for word in text.split())


def _kinds(words: Iterable[str]) -> Counter[str]:
    """How many words bear the mark of a piece, by the mark; "" for those that are whole."""
    return Counter(map(_kind, words))


def _kind(word: str) -> str:
    if word.endswith(GLUE) and word != GLUE:
        return GLUE
    return SPACE if word.startswith(SPACE) else ""


def _mark(kinds: Counter[str]) -> str:
    """What text was cut by, should more than one word in a hundred bear that mark; empty: it is whole."""
    mark = max((GLUE, SPACE), key=lambda one: kinds[one])
    return mark if kinds[mark] > 0.01 * kinds.total() else ""


def _unfit(mark: str) -> str:
    return mark and f"cut into subwords already; join them ({UNDO[mark]})"


def _vocabulary(file: Path) -> list[str]:
    """The pieces of a file, in its order, without what stands for padding, ends and unknown words."""
    lines = (line.split() for line in _read(file).split("\n"))
    found = dict.fromkeys(line[0] for line in lines if line)
    return [piece for piece in found if piece not in {*SPECIAL, "<s>", "<blank>"}]


class WordsFactory:
    """Makes the vocabulary of a run's text, or loads it."""

    def __init__(self, config: WordsConfig):
        self.config = config

    @staticmethod
    def check_files(config: WordsConfig) -> None:
        if config.codes and not Path(config.codes).is_file():
            raise UserError(f"tokenizer.codes: {config.codes} is no file")
        for key in ("model", "target_model"):
            path = Path(getattr(config, key))
            if getattr(config, key) and not (path.is_file() or (path / "tokenizer").is_dir()):
                raise UserError(f"tokenizer.{key}: {path} is no run with a tokenizer and no file")
        check_models(config)

    @property
    def joint(self) -> bool:
        return self.config.joint

    def size(self, side: str) -> int:
        if self.config.model:
            return len(self.train((), side))
        limit = self.config.vocab_size
        return limit if limit <= MOST else 0  # no text has so many words

    def unfit(self, texts: Iterable[str]) -> str:
        """As of `Tokenizer`, before there is one; of a run whose vocabulary is taken that itself has to tell."""
        given = self.config.model
        return "" if given and Path(given).is_dir() else self._unfit(_kinds(_words(texts)))

    def _unfit(self, kinds: Counter[str]) -> str:
        mark, how = _mark(kinds), ""
        if mark == SPACE:
            how = " and give its .model with tokenizer={name: sentencepiece, model: FILE}"
        elif mark and not self.config.codes:
            how = " and give their merge operations in tokenizer.codes"
        return mark and f"{_unfit(mark)}{how}, for scores would be of pieces"

    def train(self, texts: Iterable[str], what: str) -> Words:
        c = self.config
        given = Path(c.target_model if what == "target" and c.target_model else c.model)
        symbols = [one for one in dict.fromkeys(c.user_symbols) if one not in SPECIAL]
        if c.model and given.is_dir():
            check_given(given, f"{what}.pieces.json", "words", c.joint)
            base = self.load(given / "tokenizer", what)
            return self._with(base.pieces, base.codes, [*base.symbols, *symbols])
        codes = _read(Path(c.codes)) if c.codes else ""
        limit = c.vocab_size - len(SPECIAL) if c.vocab_size else None
        if c.model:
            return self._with(SPECIAL + _vocabulary(given)[:limit], codes, symbols)
        if limit is not None and limit < len(symbols):
            raise UserError(
                f"tokenizer.vocab_size: {c.vocab_size} has no room for {len(symbols)} symbols; raise it"
            )
        cutter = Words(SPECIAL, codes, c.codes, symbols=symbols)
        counts, kinds = Counter[str](), Counter[str]()
        for text in texts:
            counts.update(cutter.cut(text))
            kinds.update(_kinds(text.split()))
        if why := self._unfit(kinds):
            raise UserError(f"tokenizer: the {what} text is {why}")
        for special in (*SPECIAL, *symbols):
            del counts[special]
        # Of equal counts in the order of their letters, so that the order of the text does not matter.
        found = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return self._with((SPECIAL + symbols + found)[: c.vocab_size or None], codes, symbols)

    def _with(self, pieces: list[str], codes: str, symbols: list[str]) -> Words:
        """Of these pieces, and of the symbols that are not among them."""
        own, c = set(pieces), self.config
        pieces = pieces + [one for one in symbols if one not in own]
        return Words(pieces, codes, c.codes, c.sampling, symbols)

    def load(self, folder: Path, side: str) -> Words:
        made = Words.load(folder, side)
        return Words(made.pieces, made.codes, sampling=self.config.sampling, symbols=made.symbols)


@mtplug.hookimpl
def register_tokenizers(register):
    register("words", WordsFactory, WordsConfig)
