"""Tokenizer `nllb`: SentencePiece with fairseq's ids, and a language code in front of each text.

Of a run with several directions, the codes of both languages stand there, that of the target first: the model takes it off the
source again, and tells it to the decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtplug.data.scripts import primary
from mtplug.data.tags import TAG
from mtplug.data.tokenizers import UNK, SentencePieceConfig
from mtplug.errors import UserError, did_you_mean
from mtplug.exporting.marian_model import MarianTokenizer, MarianTokenizerFactory
from mtplug.registry import per_run


@dataclass
class NllbTokenizerConfig(SentencePieceConfig):
    """Subwords of NLLB-200, M2M-100 or mBART-50, as `mtplug-import nllb` takes them over."""

    joint: bool = False
    source_code: str = per_run("")
    """the model's code of the source language, such as eng_Latn, __en__ or en_XX: the first token of each source; with
    task.language_tags, corpora and texts say it"""
    target_code: str = per_run("")
    """its code of the target language, which is told to the decoder; empty: the decoder is told none; with
    task.language_tags, corpora and texts say it"""

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
        languages: all codes that the model has.
        of_both: whether the codes of both languages begin a text, as it says by a tag.

    Raises:
        UserError: there is no such code.
    """

    of_both = False

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
        codes = sorted(pieces[i] for i in self.symbols if not pieces[i].startswith("<"))
        self.languages = tuple(codes)
        # A text that has a symbol written out must not get its id.
        self.words = {piece: i for piece, i in self.ids.items() if i not in self.symbols}
        self.code = self._code(code) if code else None
        self.head = [code] if code and first else []
        self.prefixes = frozenset([self.code] if self.head and self.code is not None else [])

    def _code(self, code: str) -> int:
        if code not in self.languages:
            raise UserError(f"tokenizer: {self._unknown(code)}")
        return self.ids[code]

    def _unknown(self, code: str) -> str:
        # Others, transformers among them, call __de__ and de_DE just de.
        same = [one for one in self.languages if primary(one) == primary(code)]
        near = " or ".join(f"'{one}'" for one in same)
        hint = f"; did you mean {near}?" if same else did_you_mean(code, self.languages)
        return f"{code} is no language code of this model{hint}"

    def language(self, name: str) -> str:
        """A code, or the language alone where the model has one code of it, such as `en` or `eng`."""
        if name in self.languages:
            return name
        same = [one for one in self.languages if primary(one) == name.lower()]
        same = same or [one for one in self.languages if letters(one) == name.lower()]
        if len(same) != 1:
            raise UserError(self._unknown(name))
        return same[0]

    def directed(self) -> NllbTokenizer:
        made = copy.copy(self)
        made.of_both, made.head, made.code = True, [], None
        made.prefixes = frozenset(self.ids[code] for code in self.languages)
        return made

    def _split(self, texts: list[str]) -> tuple[list[list[str]], list[str]]:
        if self.of_both:
            parts = [self._tagged(text) for text in texts]
            return [codes for codes, _ in parts], [text for _, text in parts]
        return [self.head if text.strip() else [] for text in texts], texts

    def _tagged(self, text: str) -> tuple[list[str], str]:
        """The codes of target and source that a tag in front of a text says, and the rest."""
        found = TAG.match(text)
        codes = found.group(2).split(":") if found else []
        if found and len(codes) == 2 and all(code in self.ids for code in codes):
            return codes, text[found.end() :]
        return [], text

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
