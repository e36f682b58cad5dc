"""A tokenizer: the bytes of UTF-8, as in ByT5 (Xue et al. 2022). Nothing has to be trained."""

from pathlib import Path

import mtplug
from mtplug.data.tokenizers import Tokenizer

MTPLUG_API = {"tokenizers": 1}

FIRST = 3  # 0, 1 and 2 are padding, `</s>` and unknown


class Bytes(Tokenizer):
    def __len__(self):
        return FIRST + 256

    def encode(self, texts):
        return [[FIRST + byte for byte in text.encode()] for text in texts]

    def decode(self, ids):
        rows = (bytes(i - FIRST for i in row if i >= FIRST) for row in ids)
        return [row.decode(errors="replace") for row in rows]

    def tokens(self, ids):
        names = ("<pad>", "</s>", "<unk>")
        return [names[i] if i < FIRST else f"<0x{i - FIRST:02X}>" for i in ids]

    def save(self, folder, side):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{side}.bytes").write_text("UTF-8\n")

    @classmethod
    def load(cls, folder, side):
        return cls()


class ByteTokenizers:
    joint = True  # one for both languages

    def __init__(self, config):
        pass

    def size(self, side):
        return len(Bytes())

    def train(self, texts, side):
        return Bytes()

    def load(self, folder: Path, side: str):
        return Bytes.load(folder, side)


@mtplug.hookimpl
def register_tokenizers(register):
    register("NAME", ByteTokenizers)
