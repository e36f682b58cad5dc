"""Text to token ids and back: the kind `tokenizers`."""

from __future__ import annotations

import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

import mtplug
from mtplug.data.sentencepiece_file import NORMAL, USER_DEFINED, entry, renumbered
from mtplug.data.subword_sampling import SubwordSampler
from mtplug.errors import UserError, did_you_mean
from mtplug.files import is_run
from mtplug.registry import choice, require_range

PAD, EOS, UNK = 0, 1, 2
SPECIAL = ["<pad>", "</s>", "<unk>"]
"""The written forms of these."""
MOST = 2_000_000
"""Pieces of a vocabulary; the largest that are published have half as many, and a model of many more takes all memory."""


class Tokenizer(ABC):
    """Turns one language's text into ids. Ids 0, 1 and 2 are padding, `</s>` and unknown.

    Attributes:
        samples: whether training is to use the subwords of `sample` instead of those of `encode`.
        prefixes: ids that say something of the whole text, such as language tags.
        languages: codes of languages that the vocabulary itself has symbols for, by which the model is told what it reads and
            what to write, as those of NLLB-200. Where there are some, `task.language_tags` adds no symbols, and asks for `directed`.
    """

    samples = False
    prefixes: frozenset[int] = frozenset()
    languages: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Size of the vocabulary, special symbols included."""

    @abstractmethod
    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without `</s>`.

        Raises:
            UserError: a text is not written as it has to be; who called says which.
        """

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        """Ids of each text, in subwords drawn at random by its seed (from 0 to 2³¹ - 1) alone."""
        return self.encode(texts)

    def unfit(self, texts: Iterable[str]) -> str:
        """What is wrong with the texts as a whole, such as that they were cut beforehand, worded to follow "the text is";
        empty: nothing."""
        return ""

    def plain(self, text: str) -> str:
        """A text without what only this tokenizer reads in it, such as features of words: what metrics and glossaries
        that read sources are given."""
        return text

    def unknown(self, ids: np.ndarray) -> int:
        """How many of the ids stand for what is not in the vocabulary."""
        return int((ids == UNK).sum())

    def frame(self, ids: list[int]) -> tuple[int, int]:
        """How many of a text's first and how many of its last ids tell of the whole of it, such as language tags in front or
        a prompt around it: the pieces of a text that is cut keep them."""
        front = 0
        while front < len(ids) and ids[front] in self.prefixes:
            front += 1
        return front, 0

    def language(self, name: str) -> str:
        """Which of `languages` is meant by a name, such as a corpus's `target_lang`.

        Raises:
            UserError: none of them.
        """
        if name not in self.languages:
            hint = did_you_mean(name, self.languages)
            raise UserError(f"{name} is no language code of this model{hint}")
        return name

    def directed(self) -> Tokenizer:
        """Where there are `languages`: the same for sources that begin with a tag of both sides, `<2TARGET:SOURCE>`, of which it
        makes the symbols that the model wants in front. Those that may stand there are its `prefixes`."""
        raise NotImplementedError(f"{type(self).__name__} has no languages")

    @abstractmethod
    def decode(self, ids: list[list[int]]) -> list[str]:
        """Texts of ids; special symbols are left out."""

    @abstractmethod
    def tokens(self, ids: list[int]) -> list[str]:
        """The written form of each id."""

    @abstractmethod
    def save(self, folder: Path, side: str) -> None:
        """Write all that `load` needs."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, side: str) -> Tokenizer:
        """Read what `save` wrote; `side` is source, target or joint."""


class Wrapper(Tokenizer):
    """A tokenizer around another one. Subclasses change what comes in or goes out; the rest is that of `inner`.

    Only `inner` is saved: the task that loads it wraps it again.
    """

    def __init__(self, inner: Tokenizer):
        self.inner, self.samples, self.prefixes = inner, inner.samples, inner.prefixes

    def __len__(self) -> int:
        return len(self.inner)

    def unfit(self, texts: Iterable[str]) -> str:
        return self.inner.unfit(texts)

    def plain(self, text: str) -> str:
        return self.inner.plain(text)

    def unknown(self, ids: np.ndarray) -> int:
        return self.inner.unknown(ids)

    def frame(self, ids: list[int]) -> tuple[int, int]:
        own, _ = super().frame(ids)
        front, behind = self.inner.frame(ids[own:])
        return own + front, behind

    def decode(self, ids: list[list[int]]) -> list[str]:
        return self.inner.decode(ids)

    def tokens(self, ids: list[int]) -> list[str]:
        return self.inner.tokens(ids)

    def save(self, folder: Path, side: str) -> None:
        self.inner.save(folder, side)

    @classmethod
    def load(cls, folder: Path, side: str) -> Tokenizer:
        raise NotImplementedError(f"{cls.__name__} is put around a tokenizer that was loaded")


def refusals(tokenizer: Tokenizer, texts: list[str]) -> dict[int, str]:
    """Which of the texts, by number, a tokenizer does not take, and why."""
    found = {}
    for number, text in enumerate(texts):
        try:
            tokenizer.encode([text])
        except UserError as error:
            found[number] = str(error)
    return found


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The written form of every id of a vocabulary, in the order of the ids."""
    return tokenizer.tokens(list(range(len(tokenizer))))


def check_target_model(config: Any) -> None:
    """Raises `ValueError` if `target_model` is given where it is not looked at."""
    if config.target_model and (config.joint or not config.model):
        raise ValueError("target_model is for joint=false, beside `model`, the source's file")


def check_models(config: Any) -> None:
    """Raises `UserError` if `model` is one file for two vocabularies."""
    if Path(config.model).is_file() and not (config.joint or config.target_model):
        raise UserError(
            f"tokenizer.model: {config.model} is one file for two vocabularies; name the target's in "
            "tokenizer.target_model, or set tokenizer.joint=true"
        )


def check_given(run: Path, file: str, name: str, joint: bool) -> None:
    """Raises `UserError` if a run lacks a file of its tokenizer because it was made with other settings.

    Args:
        run: the folder of the run whose tokenizer is taken.
        file: what its tokenizer has where it was made with these settings.
        name: of the tokenizer that takes it.
        joint: whether that has one vocabulary for both sides.
    """
    if (run / "tokenizer" / file).is_file() or not is_run(run):
        return
    from mtplug.config.build import load_resolved

    made = load_resolved(run / "config.yaml").tokenizer
    theirs = {"name": made.name, "joint": getattr(made.config, "joint", joint)}
    others = [key for key, own in (("name", name), ("joint", joint)) if theirs[key] != own]
    if others:
        what = " and ".join(f"{key}={str(theirs[key]).lower()}" for key in others)
        raise UserError(
            f"tokenizer.model: the tokenizer of {run} was made with {what}; set the same, or start with "
            f"training.finetune_from={run}"
        )


@dataclass
class SentencePieceConfig:
    """SentencePiece subwords (Kudo and Richardson 2018), trained on the training corpora."""

    model_type: str = choice("bpe", "unigram", "char", "word")
    vocab_size: int = 8000
    """pieces, special symbols included"""
    target_vocab_size: int = 0
    """where `joint` is false, pieces of the target's vocabulary; 0: as many"""
    joint: bool = True
    """one vocabulary for both languages"""
    character_coverage: float = 1.0
    """share of characters that get pieces; 0.9995 for Chinese or Japanese with much text"""
    byte_fallback: bool = False
    """spell unknown characters as bytes"""
    normalization: str = choice("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
    """rule applied to text before it is cut; NFKC changes Chinese and Japanese punctuation"""
    keep_blanks: bool = False
    """do not merge several blanks into one, for commands and code; tabs are kept with normalization=identity"""
    sample_size: int = 2_000_000
    """sentences, at most, that the model is trained on, drawn from all over all corpora"""
    user_symbols: list[str] = field(default_factory=list)
    """pieces that are never cut"""
    sampling: float = 0.0
    """other subwords in each epoch of training, such as 0.1; bpe: probability that a merge is left out
    (BPE-dropout, Provilkov et al. 2020); unigram: smoothing α (Kudo 2018), smaller is more varied; 0: off"""
    sampling_nbest: int = -1
    """unigram: draw from so many best segmentations; -1: from all"""
    model: str = ""
    """a run whose tokenizer is taken, or a file of SentencePiece's, whose padding, `</s>` and unknown become
    ids 0, 1 and 2: nothing is trained then, and of the settings above only `joint`, `user_symbols`,
    `sampling` and `sampling_nbest` count"""
    target_model: str = ""
    """the target's file where `joint` is false and `model` is the source's"""
    extend: int = 0
    """pieces, at most, that are learnt from the training text with the settings above and added behind
    those of `model`, which keep their ids"""

    def __post_init__(self) -> None:
        require_range(self, UNK + 2, MOST, "vocab_size")  # one piece beside the special symbols
        require_range(self, 0, MOST, "extend")
        require_range(self, 1, math.inf, "sample_size")
        require_range(self, 0, 1, "character_coverage", "sampling")
        if self.target_vocab_size:
            require_range(self, UNK + 2, MOST, "target_vocab_size")
        if self.target_vocab_size and self.joint:
            raise ValueError("target_vocab_size is for joint=false")
        if self.extend and not self.model:
            raise ValueError("extend: there is no `model` to extend")
        check_target_model(self)
        if self.sampling and self.model_type not in ("bpe", "unigram"):
            raise ValueError(f"sampling needs model_type bpe or unigram, not {self.model_type}")
        if self.sampling_nbest in (0, 1):
            raise ValueError("sampling_nbest must be above 1, or -1 for all")


class SentencePiece(Tokenizer):
    """A trained SentencePiece model.

    Args:
        model: the file's bytes.
        sampling, sampling_nbest: see the configuration.
    """

    def __init__(self, model: bytes, sampling: float = 0.0, sampling_nbest: int = -1):
        self.model = model
        self.samples = sampling > 0
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.sampler = (
            SubwordSampler(model, self.processor, sampling, sampling_nbest) if sampling else None
        )

    @classmethod
    def train(cls, config: SentencePieceConfig, texts: Iterable[str], what: str) -> SentencePiece:
        """Train on `texts`, or take `config.model`, with what is to be added to it.

        Raises:
            UserError: the texts don't allow a vocabulary of the size asked for, or there is no such model.
        """
        if config.model:
            base = _given(config, what)
            base = base.extended([(symbol, 0.0) for symbol in config.user_symbols], symbols=True)
            return base.extended(base.learnt(config, texts, what)) if config.extend else base
        return cls._trained(config, texts, what)

    @classmethod
    def _trained(
        cls, config: SentencePieceConfig, texts: Iterable[str], what: str, exact: bool = True
    ) -> SentencePiece:
        written = io.BytesIO()
        own = what == "target" and config.target_vocab_size
        key = "target_vocab_size" if own else "vocab_size"
        # A model's bytes tell every setting that was given, so what is the default is left out.
        given: dict[str, Any] = {} if exact else {"hard_vocab_limit": False}
        if config.keep_blanks:
            given["remove_extra_whitespaces"] = False
        # Of reading the text, which SentencePiece would tell as its own.
        failed: list[BaseException] = []

        def watched() -> Iterator[str]:
            try:
                yield from texts
            except BaseException as error:
                failed.append(error)
                raise

        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=watched(),
                model_writer=written,
                model_type=config.model_type,
                vocab_size=getattr(config, key),
                character_coverage=config.character_coverage,
                byte_fallback=config.byte_fallback,
                normalization_rule_name=config.normalization,
                input_sentence_size=config.sample_size,
                shuffle_input_sentence=False,
                max_sentence_length=1 << 16,
                user_defined_symbols=list(config.user_symbols),
                pad_id=PAD,
                eos_id=EOS,
                unk_id=UNK,
                bos_id=-1,
                num_threads=1,  # the model must not depend on the machine
                minloglevel=2,
                **given,
            )
        except RuntimeError as error:
            if failed:
                raise failed[0] from None
            raise UserError(_explain_training(str(error), config, what, key)) from None
        return cls(written.getvalue())

    def extended(self, pieces: list[tuple[str, float]], symbols: bool = False) -> SentencePiece:
        """With more pieces behind its own, of which none changes its id; those it has are left out.

        Args:
            pieces: (written form, score).
            symbols: they are never cut, like `user_symbols`.
        """
        own = set(pieces_of(self))
        # A serialised message to which more entries of a repeated field are appended is the message
        # with these entries (protobuf's encoding).
        type_ = USER_DEFINED if symbols else NORMAL
        added = b"".join(entry(text, score, type_) for text, score in pieces if text not in own)
        return SentencePiece(self.model + added)

    def learnt(
        self, config: SentencePieceConfig, texts: Iterable[str], what: str
    ) -> list[tuple[str, float]]:
        """Up to `config.extend` pieces that `texts` want and this model lacks: first characters, without which text is
        unknown where no bytes spell it, then the most wanted.

        They are learnt as a model of the same kind is. A unigram model gives them their probability in
        that text. BPE merges by rank, where they come last: what was merged before still is.
        """
        size = len(self) + config.extend
        symbols = [symbol for symbol in config.user_symbols if symbol not in SPECIAL]
        config = replace(config, vocab_size=size, target_vocab_size=0, user_symbols=symbols)
        other = self._trained(config, texts, what, exact=False)
        own = {*pieces_of(self), *symbols}
        pieces = pieces_of(other)
        new = [
            i
            for i in range(UNK + 1, len(other))
            if pieces[i] not in own and not other.processor.is_byte(i)
        ]
        if not any(self.processor.is_byte(i) for i in range(len(self))):
            # A model of BPE has its characters last, and there are more merges before them than are taken.
            new.sort(key=lambda i: len(pieces[i]) > 1)
        new = new[: config.extend]
        lowest = min(self.processor.get_score(i) for i in range(len(self)))
        unigram = config.model_type == "unigram"
        scores = [
            other.processor.get_score(i) if unigram else lowest - 1 - n for n, i in enumerate(new)
        ]
        return list(zip((pieces[i] for i in new), scores, strict=True))

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(texts)

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        return self.sampler(texts, seeds) if self.sampler else self.encode(texts)

    def decode(self, ids: list[list[int]]) -> list[str]:
        return self.processor.decode([[i for i in row if i not in (PAD, EOS)] for row in ids])

    def tokens(self, ids: list[int]) -> list[str]:
        return [self.processor.id_to_piece(i) for i in ids]

    def save(self, folder: Path, side: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{side}.model").write_bytes(self.model)

    @classmethod
    def load(cls, folder: Path, side: str) -> SentencePiece:
        path = folder / f"{side}.model"
        if not path.is_file():
            raise UserError(f"{path} is missing; the run's folder is not complete")
        if not path.stat().st_size:  # which SentencePiece takes for a model without pieces
            raise UserError(f"{path} is damaged: it is empty; restore that file")
        try:
            return cls(path.read_bytes())
        except RuntimeError as error:
            raise UserError(f"{path} is no SentencePiece model: {error}") from None


def _given(config: SentencePieceConfig, side: str) -> SentencePiece:
    """The model of a side, of a run or a file."""
    path = config.target_model if side == "target" and config.target_model else config.model
    folder, name = _place(path, side)
    if folder != Path(path).parent:
        check_given(Path(path), f"{name}.model", "sentencepiece", config.joint)
    model = SentencePiece.load(folder, name).model
    return SentencePiece(renumbered(model) if folder == Path(path).parent else model)


def _place(path: str, side: str) -> tuple[Path, str]:
    """The folder and side under which the model of a run, or a file, is loaded."""
    run = Path(path) / "tokenizer"
    if run.is_dir():
        return run, side
    if Path(path).suffix == ".model" and Path(path).is_file():
        return Path(path).parent, Path(path).stem
    raise UserError(f"tokenizer.model: {path} is no run with a tokenizer and no .model file")


def _explain_training(message: str, config: SentencePieceConfig, what: str, key: str) -> str:
    asked = getattr(config, key)
    limit = re.search(r"<= (\d+)", message)
    if "Vocabulary size too high" in message and limit:
        return (
            f"tokenizer.{key}: {asked} is more than the {what} text allows; "
            f"at most {limit.group(1)}"
        )
    least = re.search(r"smaller than required_chars. \d+ vs (\d+)", message)
    if least or "too small" in message:
        bound = f": at least {least.group(1)}, all symbols counted" if least else ""
        return (
            f"tokenizer.{key}: {asked} is less than the {what} text has "
            f"characters{bound}; raise it, or lower tokenizer.character_coverage"
        )
    if "(vocab_size) >= (0)" in message:
        count = len(config.user_symbols)
        return f"tokenizer.{key}: {asked} has no room for {count} symbols; raise it"
    return f"tokenizer: SentencePiece cannot be trained on the {what} text: {message.strip()}"


class SentencePieceFactory:
    """Trains or loads the tokenizers of a run: one joint model or one for each side."""

    def __init__(self, config: SentencePieceConfig):
        self.config = config

    @staticmethod
    def check_files(config: SentencePieceConfig) -> None:
        for path in filter(None, (config.model, config.target_model)):
            _place(path, "joint")
        check_models(config)

    @property
    def joint(self) -> bool:
        return self.config.joint

    def size(self, side: str) -> int:
        c = self.config
        if c.model:
            return len(SentencePiece.train(replace(c, extend=0), (), side)) + c.extend
        return (c.target_vocab_size if side == "target" else 0) or c.vocab_size

    def train(self, texts: Iterable[str], what: str) -> Tokenizer:
        return self._sampling(SentencePiece.train(self.config, texts, what))

    def load(self, folder: Path, side: str) -> Tokenizer:
        return self._sampling(SentencePiece.load(folder, side))

    def _sampling(self, made: SentencePiece) -> SentencePiece:
        return SentencePiece(made.model, self.config.sampling, self.config.sampling_nbest)


@mtplug.hookimpl
def register_tokenizers(register):
    register("sentencepiece", SentencePieceFactory, SentencePieceConfig)
