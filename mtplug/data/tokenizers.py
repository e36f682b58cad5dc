"""Text to token ids and back: the kind `tokenizers`."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

import mtplug
from mtplug.errors import UserError
from mtplug.registry import choice

PAD, EOS, UNK = 0, 1, 2


class Tokenizer(ABC):
    """Turns one language's text into ids. Ids 0, 1 and 2 are padding, `</s>` and unknown.

    Attributes:
        samples: whether training shall see the subwords of `sample` instead of those of `encode`.
        prefixes: ids that say something of the whole text, such as language tags.
    """

    samples = False
    prefixes: frozenset[int] = frozenset()

    @abstractmethod
    def __len__(self) -> int:
        """Size of the vocabulary, special symbols included."""

    @abstractmethod
    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without `</s>`."""

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        """Ids of each text, in subwords drawn at random by its seed (from 0 to 2³¹ - 1) alone."""
        return self.encode(texts)

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


@dataclass
class SentencePieceConfig:
    """SentencePiece subwords (Kudo and Richardson 2018), trained on the training corpora."""

    model_type: str = choice("bpe", "unigram", "char", "word")
    vocab_size: int = 8000
    """pieces, special symbols included"""
    joint: bool = True
    """one vocabulary for both languages"""
    character_coverage: float = 1.0
    """share of characters that get pieces; 0.9995 for Chinese or Japanese with much text"""
    byte_fallback: bool = False
    """spell unknown characters as bytes"""
    normalization: str = choice("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
    """rule applied to text before it is cut; NFKC changes Chinese and Japanese punctuation"""
    sample_size: int = 2_000_000
    """sentences, at most, that the model is trained on"""
    user_symbols: list[str] = field(default_factory=list)
    """pieces that are never cut"""
    sampling: float = 0.0
    """other subwords in each epoch of training, such as 0.1; bpe: probability that a merge is left out
    (BPE-dropout, Provilkov et al. 2020); unigram: smoothing α (Kudo 2018), smaller is more varied; 0: off"""
    sampling_nbest: int = -1
    """unigram: draw from so many best segmentations; -1: from all"""

    def __post_init__(self) -> None:
        if not 0 <= self.sampling <= 1:
            raise ValueError(f"sampling must be from 0 to 1, not {self.sampling}")
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
        self.sampling, self.sampling_nbest = sampling, sampling_nbest
        self.samples = sampling > 0
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(cls, config: SentencePieceConfig, texts: Iterable[str], what: str) -> SentencePiece:
        """Train on `texts`.

        Raises:
            UserError: the texts don't allow a vocabulary of the size asked for.
        """
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                model_type=config.model_type,
                vocab_size=config.vocab_size,
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
            )
        except RuntimeError as error:
            raise UserError(_explain_training(str(error), config, what)) from None
        return cls(written.getvalue())

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(texts)

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        found = []
        for text, seed in zip(texts, seeds, strict=True):
            sentencepiece.set_random_generator_seed(seed)
            found.append(
                self.processor.encode(
                    text,
                    enable_sampling=True,
                    alpha=self.sampling,
                    nbest_size=self.sampling_nbest,
                )
            )
        return found

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
        try:
            return cls(path.read_bytes())
        except RuntimeError as error:
            raise UserError(f"{path} is no SentencePiece model: {error}") from None


def _explain_training(message: str, config: SentencePieceConfig, what: str) -> str:
    limit = re.search(r"<= (\d+)", message)
    if "Vocabulary size too high" in message and limit:
        return (
            f"tokenizer.vocab_size: {config.vocab_size} is more than the {what} text allows; "
            f"at most {limit.group(1)}"
        )
    if "smaller than required_chars" in message or "too small" in message:
        return (
            f"tokenizer.vocab_size: {config.vocab_size} is less than the {what} text has "
            "characters; raise it, or lower tokenizer.character_coverage"
        )
    return f"tokenizer: SentencePiece cannot be trained on the {what} text: {message.strip()}"


class SentencePieceFactory:
    """Trains or loads the tokenizers of a run: one joint model or one for each side."""

    def __init__(self, config: SentencePieceConfig):
        self.config = config

    @property
    def joint(self) -> bool:
        return self.config.joint

    def train(self, texts: Iterable[str], what: str) -> SentencePiece:
        return self._sampling(SentencePiece.train(self.config, texts, what))

    def load(self, folder: Path, side: str) -> SentencePiece:
        return self._sampling(SentencePiece.load(folder, side))

    def _sampling(self, made: SentencePiece) -> SentencePiece:
        return SentencePiece(made.model, self.config.sampling, self.config.sampling_nbest)


@mtplug.hookimpl
def register_tokenizers(register):
    register("sentencepiece", SentencePieceFactory, SentencePieceConfig)
