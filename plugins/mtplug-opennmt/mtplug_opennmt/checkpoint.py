"""Format `opennmt`: checkpoints of OpenNMT-py 2 and 3, read.

Weights, options and vocabulary are in one file, or the weights beside it in files of safetensors.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.files import read_pickled, read_tensors
from mtplug_opennmt.reading import imported
from mtplug_opennmt.vocabulary import Model, with_end

Values = dict[str, Any]


@dataclass
class OpenNmtFormat:
    """A Transformer that OpenNMT-py 2 or 3 trained for translation; it is only read. `source` is a checkpoint,
    model_step_N.pt."""

    source_lang: str = ""
    """the run's task.source_lang"""
    target_lang: str = ""
    """the run's task.target_lang; decides how BLEU tokenises"""
    source_subwords: str = ""
    """what cut the source into subwords: a .model of SentencePiece, or codes of subword-nmt; `none`: text is taken and given
    as the vocabulary has it, cut already; empty: as the options of training say"""
    target_subwords: str = ""
    """the same of the target; empty: as `source_subwords`, if that is given"""


class OpenNmtImporter:
    def __init__(self, config: OpenNmtFormat):
        self.config = config

    def read(self, source: Path) -> Imported:
        """A checkpoint of encoder_type and decoder_type transformer.

        Raises:
            UserError: it is none, or the model has something that ours does not.
        """
        if not source.is_file():
            raise UserError(f"{source} is a folder; give the checkpoint itself, model_step_N.pt")
        state = _loaded(source)
        options = dict(vars(state["opt"]))
        weights = _weights(state, source)
        model = Model(source, options, weights, *_vocabularies(state["vocab"], source))
        return imported(model, self.config)


class _Kept:
    """Stands for an object of another library: of it only the state is kept, and none of its code is run."""

    def __init__(self, *args: Any):
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _kept(file: Path) -> list[Any]:
    """What stands for the objects in which version 2 has its vocabularies, which are torchtext's fields."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # reading it says what is wrong with the file
        return []
    ours = ("onmt.", "torchtext.", "functools.partial")
    return [(_Kept, name) for name in names if name.startswith(ours)]


def _loaded(file: Path) -> Values:
    advice = (
        "in OpenNMT-py, if you trust the file: s = torch.load(FILE, weights_only=False); "
        "torch.save({k: s[k] for k in ('opt', 'vocab', 'model', 'generator') if k in s}, NEW)"
    )
    with torch.serialization.safe_globals([argparse.Namespace, *_kept(file)]):
        state = read_pickled(file, advice)
    if not isinstance(state, dict) or not {"opt", "vocab"} <= state.keys():
        raise UserError(f"{file} is no checkpoint of OpenNMT-py's: it has no opt and vocab")
    return state


def _weights(state: Values, file: Path) -> dict[str, Tensor]:
    """By the names of version 3, those of the generator with it in front."""
    if state.get("model") is None:
        parts = sorted(file.parent.glob(f"{file.name.removesuffix('.pt')}.*.safetensors"))
        if not parts:
            raise UserError(
                f"{file} has no weights, and beside it is no {file.stem}.00.safetensors"
            )
        return {name: t for part in parts for name, t in read_tensors(part).items()}
    found = dict(state["model"])
    for name, tensor in (state.get("generator") or {}).items():
        found["generator." + name.removeprefix("0.")] = tensor  # 0. in version 2
    # Layer normalisation before torch had one.
    old = (
        (r"(layer_norm(?:_\d)?)\.a_2$", r"\1.weight"),
        (r"(layer_norm(?:_\d)?)\.b_2$", r"\1.bias"),
    )
    for pattern, new in old:
        found = {re.sub(pattern, new, name): tensor for name, tensor in found.items()}
    return found


def _vocabularies(vocab: Any, file: Path) -> tuple[list[str], list[str], str]:
    """The symbols of source and target by their ids, and the one that decoding begins with."""
    if not isinstance(vocab, dict) or not {"src", "tgt"} <= vocab.keys():
        raise UserError(f"{file} is no checkpoint of OpenNMT-py's: its vocab has no src and tgt")
    if isinstance(vocab["src"], _Kept):
        found, counts = [], []
        for side in ("src", "tgt"):
            fields = vocab[side].state["fields"]
            found.append(list(fields[0][1].state["vocab"].state["itos"]))
            counts.append(len(fields))
        vocab = {"src": found[0], "tgt": found[1], "src_feats": max(counts) > 1}
    if vocab.get("src_feats"):
        raise UserError(f"{file}: its source has features (src_feats), which ours has not")
    return with_end(vocab["src"]), vocab["tgt"], vocab.get("decoder_start_token", "<s>")
