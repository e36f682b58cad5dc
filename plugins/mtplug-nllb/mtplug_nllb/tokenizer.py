"""Tokenizer `nllb`: SentencePiece with fairseq's ids, and a language code in front of each text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtplug.data.tokenizers import UNK, SentencePieceConfig
from mtplug.errors import UserError, did_you_mean
from mtplug.exporting.marian_model import MarianTokenizer, MarianTokenizerFactory
from mtplug.registry import per_run


@dataclass
class NllbTokenizerConfig(SentencePieceConfig):
    """Subwords of NLLB-200, M2M-100 or mBART-50, as `mtplug-import nllb` takes them over."""

    joint: bool = False
    source_code: str = per_run("")
    """the model's code of the source language, such as eng_Latn, __en__ or en_XX: the first token of each source"""
    target_code: str = per_run("")
    """its code of the target language, which is told to the decoder; empty: the decoder is told none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joint:
            raise ValueError("joint: each side has a language code of its own; it must be false")


def letters(code: str) -> str:
    """Those that a code begins with: eng of eng_Latn, en of __en__ and of en_XX."""
    return code.strip("_").split("_")[0].lower()


class NllbTokenizer(MarianTokenizer):
    """One side of such a model.

    Args:
        model: of SentencePiece, which cuts the text.
        pieces: by id; those that SentencePiece does not have are language codes and other symbols, which no text has.
        sampling, sampling_nbest: see the configuration.
        code: the language of the text; empty: none.
        first: whether texts begin with it, as sources do; targets do without, since the decoder is told it.

    Attributes:
        code: its id; None where there is none.
        codes: all that the model has.

    Raises:
        UserError: there is no such code.
    """

    def __init__(
        self,
        model: bytes,
        pieces: list[str],
        sampling: float = 0.0,
        sampling_nbest: int = -1,
        code: str = "",
        first: bool = False,
    ):
        super().__init__(model, pieces, sampling, sampling_nbest)
        known = {self.processor.id_to_piece(i) for i in range(self.processor.get_piece_size())}
        self.symbols = frozenset(
            i for i, piece in enumerate(pieces) if i != UNK and piece not in known
        )
        self.codes = sorted(pieces[i] for i in self.symbols if not pieces[i].startswith("<"))
        # A text that has a symbol written out must not get its id.
        self.words = {piece: i for piece, i in self.ids.items() if i not in self.symbols}
        self.code = self._code(code) if code else None
        self.head = [code] if code and first else []
        self.prefixes = frozenset([self.code] if self.head and self.code is not None else [])

    def _code(self, code: str) -> int:
        if code not in self.codes:
            # Others, transformers among them, call __de__ and de_DE just de.
            same = [one for one in self.codes if letters(one) == letters(code)]
            near = " or ".join(f"'{one}'" for one in same)
            hint = f"; did you mean {near}?" if same else did_you_mean(code, self.codes)
            raise UserError(f"tokenizer: {code} is no language code of this model{hint}")
        return self.ids[code]

    def _split(self, texts: list[str]) -> tuple[list[list[str]], list[str]]:
        return [self.head if text.strip() else [] for text in texts], texts

    def _numbered(self, codes: list[list[str]], pieces: list[list[str]]) -> list[list[int]]:
        rows = [[self.words.get(piece, UNK) for piece in row] for row in pieces]
        heads = [[self.ids[code] for code in head] for head in codes]
        return [head + row if row else [] for head, row in zip(heads, rows, strict=True)]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return super().decode([[i for i in row if i not in self.symbols] for row in ids])


class NllbTokenizerFactory(MarianTokenizerFactory):
    """Loads what was imported. There is nothing to train: the codes are the model's."""

    config: NllbTokenizerConfig

    def train(self, texts: Iterable[str], what: str) -> MarianTokenizer:
        raise UserError(
            "tokenizer nllb is that of a model that was read: give it as training.finetune_from"
        )

    def load(self, folder: Path, side: str) -> MarianTokenizer:
        code = getattr(self.config, f"{side}_code")
        return NllbTokenizer.load(folder, side, *self._how, code, side == "source")
