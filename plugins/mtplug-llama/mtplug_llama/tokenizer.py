"""Tokenizer `llama`: that of a folder's tokenizer.json, and a prompt around each source.

Prompt and text are cut together, as the model saw them in its training: at their border, letters of both may be one token.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from mtplug.data.tokenizers import SPECIAL, UNK, Tokenizer
from mtplug.errors import UserError
from mtplug.files import read_json, write_whole
from mtplug.registry import per_run

# Its threads would be forked into the processes that cut corpora, and tell of it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SOURCE = "{source}"
ABSENT = -1


@dataclass
class PromptTokenizerConfig:
    """Subwords of Llama, Mistral or Qwen, as `mtplug-import llama` takes them over."""

    prompt: str = per_run("{source}")
    """what stands around each source text, which is {source}; a backslash and n is a new line"""

    def __post_init__(self) -> None:
        if self.prompt.count(SOURCE) != 1:
            raise ValueError(f"prompt: {SOURCE} has to stand in it once, where the text belongs")


class PromptTokenizer(Tokenizer):
    """One side of such a model.

    Args:
        file: what tokenizer.json holds.
        theirs: by our id that of the model; -1 where it has none, as of padding.
        prompt: around each text; empty: none, as around targets.

    Raises:
        UserError: that is no tokenizer.
    """

    def __init__(self, file: str, theirs: list[int], prompt: str = ""):
        try:
            self.processor = tokenizers.Tokenizer.from_str(file)
        except Exception as error:  # the library raises nothing more exact
            raise UserError(f"tokenizer.json cannot be read: {error}") from None
        self.processor.no_padding()
        self.processor.no_truncation()
        self.file, self.theirs, self.prompt = file, theirs, prompt.replace("\\n", "\n")
        self.ours = {their: i for i, their in enumerate(theirs) if their != ABSENT}
        # What the tokenizer puts in front of texts and behind them: a prompt has the first, unless it writes it out.
        before, self.ends = self._added()
        own = self.processor.encode(self.prompt, add_special_tokens=False).ids
        self.begins = bool(prompt) and own[: len(before)] != before
        self.head: list[int] = []
        self.behind = 0
        if prompt:
            self.head, self.behind = self._around()

    def __len__(self) -> int:
        return len(self.theirs)

    def encode(self, texts: list[str]) -> list[list[int]]:
        given = [self.prompt.replace(SOURCE, text) if self.prompt else text for text in texts]
        found = self.processor.encode_batch(given, add_special_tokens=self.begins)
        # The target goes on behind a prompt, so that nothing ends it.
        ends = self.ends if self.begins else 0
        return [
            [self.ours.get(i, UNK) for i in one.ids[: len(one.ids) - ends]] if text.strip() else []
            for one, text in zip(found, texts, strict=True)
        ]

    def _added(self) -> tuple[list[int], int]:
        """Ids that are put in front of a text, and how many behind it."""
        found = self.processor.encode("Q")
        own = found.special_tokens_mask.index(0)
        return found.ids[:own], found.special_tokens_mask[::-1].index(0)

    def _around(self) -> tuple[list[int], int]:
        """The ids of a prompt in front of its text, and how many behind it."""
        text = "Q"
        found = self.processor.encode(
            self.prompt.replace(SOURCE, text), add_special_tokens=self.begins
        )
        start = self.prompt.index(SOURCE)
        stop = len(self.prompt[:start].rstrip(" "))  # a blank is one token with most words
        count = len(found.ids) - (self.ends if self.begins else 0)
        places = found.offsets[:count]
        front = next((n for n, (_, end) in enumerate(places) if end > stop), count)
        behind = sum(begin >= start + len(text) for begin, _ in places[front:])
        return [self.ours.get(i, UNK) for i in found.ids[:front]], behind

    def frame(self, ids: list[int]) -> tuple[int, int]:
        front = len(self.head)
        whole = front + self.behind < len(ids) and ids[:front] == self.head
        return (front, self.behind) if whole else (0, 0)

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Texts without the prompt."""
        bare = []
        for row in ids:
            front, behind = self.frame(row) if self.head else (0, 0)
            bare.append([self.theirs[i] for i in row[front : len(row) - behind]])
        kept = [[i for i in row if i != ABSENT] for row in bare]
        return [text.strip() for text in self.processor.decode_batch(kept)]

    def tokens(self, ids: list[int]) -> list[str]:
        return [
            (self.processor.id_to_token(self.theirs[i]) if self.theirs[i] != ABSENT else None)
            or (SPECIAL[i] if i <= UNK else f"<unused-{self.theirs[i]}>")
            for i in ids
        ]

    def save(self, folder: Path, side: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{side}.tokenizer.json", self.file)
        write_whole(folder / f"{side}.ids.json", json.dumps(self.theirs))

    @classmethod
    def load(cls, folder: Path, side: str, prompt: str = "") -> PromptTokenizer:
        file = folder / f"{side}.tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        return cls(text, read_json(folder / f"{side}.ids.json", "restore it", list), prompt)


class PromptTokenizerFactory:
    """Loads what was imported."""

    joint = False

    def __init__(self, config: PromptTokenizerConfig):
        self.config = config

    def train(self, texts: Iterable[str], what: str) -> Any:
        raise UserError(
            "tokenizer llama is that of a model that was read: give it as training.finetune_from"
        )

    def load(self, folder: Path, side: str) -> PromptTokenizer:
        return PromptTokenizer.load(folder, side, self.config.prompt if side == "source" else "")
