"""What a Marian model has that our Transformer does not: architecture and tokenizer `marian`. Plugins that read the models of
other toolkits build theirs of the same parts.

Marian (Junczys-Dowmunt et al. 2018) adds a bias to the logits, begins to decode with an embedding of its own
(zeros), and has one vocabulary made of two SentencePiece models. `mtplug-import marian` makes runs of these.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor, nn

import mtplug
from mtplug.architectures.transformer import Transformer, TransformerConfig
from mtplug.data.merged_words import Words
from mtplug.data.subword_sampling import SubwordSampler
from mtplug.data.tokenizers import (
    EOS,
    PAD,
    UNK,
    SentencePiece,
    SentencePieceConfig,
    SentencePieceFactory,
    Tokenizer,
    pieces_of,
)
from mtplug.errors import UserError
from mtplug.files import read_json
from mtplug.nn.positions import PositionEncoding
from mtplug.registry import require_range


@dataclass
class MarianConfig(TransformerConfig):
    """A Transformer with a bias of the logits and an embedding that decoding begins with."""


class SharedTable(Transformer):
    """`tie_embeddings=all` asks for vocabularies of one size, not for one tokenizer."""

    def __init__(self, config: TransformerConfig, task: Any):
        sizes = {len(task.source_tokenizer), len(task.target_tokenizer)}
        shared = config.tie_embeddings == "all"
        if shared and len(sizes) > 1:
            raise UserError("architecture.tie_embeddings: all needs vocabularies of one size")
        super().__init__(
            dataclasses.replace(config, tie_embeddings="decoder") if shared else config, task
        )
        self.config = config
        if shared:
            self.encoder_embedding = self.decoder_embedding


class OwnStart(Transformer):
    """Decoding begins with `start_embedding`, which is no token's."""

    def __init__(self, config: TransformerConfig, task: Any):
        super().__init__(config, task)
        self.start_embedding = nn.Parameter(torch.zeros(config.dim))

    def embed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if position is not self.decoder_position:
            return super().embed(table, position, tokens, start, cu_seqlens)

        def looked_up(ids: Tensor) -> Tensor:  # decoder input has `</s>` at its start only
            return torch.where((ids == EOS)[..., None], self.start_embedding, table(ids))

        return super().embed(looked_up, position, tokens, start, cu_seqlens)  # type: ignore[arg-type]


class OutputBias(Transformer):
    """Logits have a bias."""

    def __init__(self, config: TransformerConfig, task: Any):
        super().__init__(config, task)
        self.output_bias = nn.Parameter(torch.zeros(len(task.target_tokenizer)))

    def project(self, features: Tensor) -> Tensor:
        return self.output(features) + self.output_bias

    @property
    def output_weight(self) -> None:  # type: ignore[override]
        return None

    @property
    def output_map(self) -> tuple[Tensor, Tensor | None] | None:
        if type(self.output) is not nn.Linear:  # but what a library of adapters has put there
            return None
        return self.output.weight, self.output_bias


@dataclass
class ForeignConfig(TransformerConfig):
    """Transformer of another toolkit."""

    start: int = EOS
    """id of the token that decoding begins with"""
    norm_eps: float = 1e-6
    """what is added to the variance in layer normalisations"""
    scale_embeddings: bool = True
    """embeddings are multiplied by √dim"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, math.inf, "start", "norm_eps")


class ForeignTransformer(SharedTable):
    """Decoding begins with a token of the vocabulary that is not `</s>`, such as `<s>`."""

    config: ForeignConfig

    def __init__(self, config: ForeignConfig, task: Any):
        size = len(task.target_tokenizer)
        if config.start >= size:  # such as of a run with another vocabulary
            raise UserError(
                f"architecture.start: {config.start} is no id of the target's vocabulary of {size} tokens; set that of the "
                f"token that decoding begins with, such as {EOS} for </s>"
            )
        super().__init__(config, task)
        if not config.scale_embeddings:
            self.embedding_scale = 1.0
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps

    def embed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if position is self.decoder_position:  # decoder input has `</s>` at its start only
            tokens = torch.where(tokens == EOS, self.config.start, tokens)
        return super().embed(table, position, tokens, start, cu_seqlens)


class Marian(SharedTable, OwnStart, OutputBias):
    config: MarianConfig


@dataclass
class MarianTokenizerConfig(SentencePieceConfig):
    """SentencePiece whose pieces have the ids of another vocabulary."""


class MarianTokenizer(Tokenizer):
    """One side of a Marian model.

    Args:
        model: of SentencePiece, which cuts the text.
        pieces: by id; what is not among them is unknown. May begin with a language code `>>xx<<`.
        sampling, sampling_nbest: see the configuration.
    """

    def __init__(
        self, model: bytes, pieces: list[str], sampling: float = 0.0, sampling_nbest: int = -1
    ):
        self.model, self.pieces, self.samples = model, pieces, sampling > 0
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.ids = {piece: i for i, piece in enumerate(pieces)}
        self.sampler = (
            SubwordSampler(model, self.processor, sampling, sampling_nbest) if sampling else None
        )

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        codes, rest = self._split(texts)
        return self._numbered(codes, self.processor.encode(rest, out_type=str))

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        if self.sampler is None:
            return self.encode(texts)
        codes, rest = self._split(texts)
        drawn = self.sampler(rest, seeds)
        return self._numbered(codes, [list(map(self.processor.id_to_piece, ids)) for ids in drawn])

    def _split(self, texts: list[str]) -> tuple[list[list[str]], list[str]]:
        """The language code of each text, if it has one, and what follows it."""
        codes, rest = [], []
        for text in texts:
            code, mark, behind = text.partition("<<")
            known = mark and code.startswith(">>") and code + mark in self.ids
            codes.append([code + mark] if known else [])
            rest.append(behind if known else text)
        return codes, rest

    def _numbered(self, codes: list[list[str]], pieces: list[list[str]]) -> list[list[int]]:
        rows = (code + row for code, row in zip(codes, pieces, strict=True))
        return [[self.ids.get(piece, UNK) for piece in row] for row in rows]

    def decode(self, ids: list[list[int]]) -> list[str]:
        pieces = [[self.pieces[i] for i in row if i not in (PAD, EOS)] for row in ids]
        return [self.processor.decode_pieces(row) if row else "" for row in pieces]

    def tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]

    def save(self, folder: Path, side: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{side}.model").write_bytes(self.model)
        text = json.dumps(self.pieces, ensure_ascii=False)
        (folder / f"{side}.pieces.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, side: str, *how: Any) -> MarianTokenizer:
        """Read what `save` wrote; `how` are further arguments of the class, the first ones `sampling` and `sampling_nbest`."""
        try:
            pieces = read_json(folder / f"{side}.pieces.json", "restore it", list)
            model = (folder / f"{side}.model").read_bytes()
            return cls(model, pieces, *how)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder} has no Marian tokenizer of side {side}: {error}") from None


def subwords_of(config: Any) -> dict[str, str]:
    """By side, what an importer's settings `source_subwords` and `target_subwords` name; without the second both are the first.

    Raises:
        UserError: one is a model of SentencePiece, the other is not.
    """
    given = {
        "source": config.source_subwords,
        "target": config.target_subwords or config.source_subwords,
    }
    if len({Path(path).suffix == ".model" for path in given.values()}) > 1:
        raise UserError("source_subwords, target_subwords: give two files of one kind")
    return given


def tokenizer_of(pieces: list[str], subwords: str) -> Tokenizer:
    """Pieces by our ids, into which text is cut by a file of `subwords`: a model of SentencePiece (.model, .spm), or codes
    of subword-nmt or fastBPE. Without one, text is taken and given as the pieces have it.

    Raises:
        UserError: the file is missing, or has no subwords.
    """
    if not subwords:
        return Words(pieces)
    try:
        raw = Path(subwords).read_bytes()
        if Path(subwords).suffix in (".model", ".spm"):
            return MarianTokenizer(raw, pieces)
        return Words(pieces, raw.decode(), subwords)
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"{subwords} has no subwords: {error}") from None


class MarianTokenizerFactory(SentencePieceFactory):
    """Loads what was imported; trained afresh, a side's pieces have the ids that SentencePiece gave."""

    def train(self, texts: Iterable[str], what: str) -> MarianTokenizer:
        trained = SentencePiece.train(self.config, texts, what)
        return MarianTokenizer(trained.model, pieces_of(trained), *self._how)

    def load(self, folder: Path, side: str) -> MarianTokenizer:
        return MarianTokenizer.load(folder, side, *self._how)

    @property
    def _how(self) -> tuple[float, int]:
        return self.config.sampling, self.config.sampling_nbest


@mtplug.hookimpl
def register_architectures(register):
    register("marian", Marian, MarianConfig)


@mtplug.hookimpl
def register_tokenizers(register):
    register("marian", MarianTokenizerFactory, MarianTokenizerConfig)
