"""What OpenNMT-py's model was fed with: its vocabularies and subword models, as tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mtplug.data.merged_words import SPECIAL, Words
from mtplug.data.tokenizers import UNK, Tokenizer
from mtplug.errors import UserError
from mtplug.exporting.marian_model import MarianTokenizer

OURS = ("<blank>", "</s>", "<unk>")
"""What stands at our ids 0, 1, 2; the rest keeps its order behind them."""
SIDES = {"source": "src", "target": "tgt"}
NONE = "none"
HOW = "source_subwords=FILE says what cuts it, source_subwords=none that text comes cut"

Values = dict[str, Any]


@dataclass
class Model:
    """What was read.

    Attributes:
        file: for messages.
        options: of the model and its training, as OpenNMT-py calls them.
        weights: by the names of OpenNMT-py 3; those of the generator begin with it.
        source, target: symbols by their ids.
        start: the symbol that decoding begins with.
    """

    file: Path
    options: Values
    weights: dict[str, Tensor]
    source: list[str]
    target: list[str]
    start: str


def with_end(symbols: list[str]) -> list[str]:
    """A source's `</s>`, which the encoder does not see, may not be among its symbols."""
    return symbols if OURS[1] in symbols else [*symbols, OURS[1]]


def rows_of(symbols: list[str], file: Path) -> list[int]:
    """Their id of each of ours."""
    if missing := [symbol for symbol in OURS if symbol not in symbols]:
        raise UserError(f"{file}: its vocabulary has no {missing[0]}")
    first = [symbols.index(symbol) for symbol in OURS]
    return first + [i for i in range(len(symbols)) if i not in set(first)]


def tokenizers_of(model: Model, config: Any) -> dict[str, Tokenizer]:
    """By side, or one that is joint.

    Args:
        model: what was read.
        config: has source_subwords and target_subwords.

    Raises:
        UserError: a file is missing or no subword model, or text was cut in a way that ours do not have.
    """
    given = {side: _subwords(model, config, side) for side in SIDES}
    kinds = {side: path and Path(path).suffix == ".model" for side, path in given.items()}
    if len(set(kinds.values())) > 1:
        raise UserError("source_subwords, target_subwords: give two files of one kind")
    made = {}
    for side, path in given.items():
        symbols: list[str] = getattr(model, side)
        pieces = [*SPECIAL, *(symbols[i] for i in rows_of(symbols, model.file)[UNK + 1 :])]
        made[side] = _tokenizer(pieces, path)
    same = given["source"] == given["target"] and model.source == model.target
    return {"joint": made["source"]} if same else made


def _subwords(model: Model, config: Any, side: str) -> str:
    """The file that cuts text of a side; empty: none does."""
    given: str = getattr(config, f"{side}_subwords") or config.source_subwords
    if given:
        return "" if given == NONE else given
    o, short = model.options, SIDES[side]
    names = _transforms(o)
    if "onmt_tokenize" in names or ("bpe" in names and o.get(f"{short}_vocab_threshold")):
        what = "onmt_tokenize" if "onmt_tokenize" in names else f"{short}_vocab_threshold"
        raise UserError(f"{model.file}: text was cut by {what}, which ours do not have; {HOW}")
    if not names & {"sentencepiece", "bpe"}:
        return ""
    path = o.get(f"{short}_subword_model")
    if o.get("share_vocab") or not path:  # then one model is for both
        path = o.get("src_subword_model") or path
    tried = [
        Path(str(path)),
        model.file.parent / str(path),
        model.file.parent / Path(str(path)).name,
    ]
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        raise UserError(
            f"{model.file}: its subword model {path} ({short}_subword_model) is not there; {HOW}"
        )
    if "sentencepiece" in names and found.suffix != ".model":
        raise UserError(f"{found} is of SentencePiece; name it so: {found.name}.model")
    return str(found)


def _transforms(options: Values) -> set[str]:
    """What was done to the text of any corpus."""
    corpora = options.get("data")
    found = set(options.get("transforms") or ()) | set(options.get("_all_transform") or ())
    for corpus in corpora.values() if isinstance(corpora, dict) else ():
        found |= set((corpus or {}).get("transforms") or ())
    return found


def _tokenizer(pieces: list[str], subwords: str) -> Tokenizer:
    if not subwords:
        return Words(pieces)
    try:
        raw = Path(subwords).read_bytes()
        if Path(subwords).suffix == ".model":
            return MarianTokenizer(raw, pieces)
        return Words(pieces, raw.decode(), subwords)
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"{subwords} has no subwords: {error}") from None
