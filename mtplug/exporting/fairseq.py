"""fairseq's Transformers, read: a checkpoint of `fairseq-train` with its dictionaries becomes a run.

Shapes: V vocabulary, C model size, P positions.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

import mtplug
from mtplug.data.merged_words import Words
from mtplug.data.tokenizers import SPECIAL, Tokenizer
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.marian_model import subwords_of, tokenizer_of
from mtplug.files import read_pickled

BOS, PAD, EOS, UNK = range(4)  # in every dictionary of fairseq
FIRST = PAD + 1  # the number of a sentence's first position
OURS = (PAD, EOS, UNK)
"""What stands at our ids 0, 1, 2; `<s>`, which ours lack but which has a logit, comes last."""
PAIR = re.compile(r"[^.]+\.([^.-]+)-([^.-]+)\.")
"""train.de-en.de.bin"""
NAMES = ("checkpoint_best.pt", "checkpoint_last.pt", "model.pt")
IGNORED = (
    r".*\.version|.*_float_tensor|encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)"
)
"""Of a state, what holds no weights; the last ones are room for a fused forward pass of fairseq 0.12."""

Values = dict[str, Any]


@dataclass
class FairseqFormat:
    """A Transformer that fairseq trained for translation; it is only read. `source` is its checkpoint, or the folder of
    one called checkpoint_best.pt, checkpoint_last.pt or model.pt."""

    data: str = ""
    """the folder of dict.LANG.txt, as was given to fairseq-train; empty: the checkpoint's"""
    source_lang: str = ""
    """LANG of the source; empty: as the checkpoint, or the name of a file in `data`, says"""
    target_lang: str = ""
    """LANG of the target, likewise"""
    source_subwords: str = ""
    """what cut the source into subwords: a .model of SentencePiece, or codes of subword-nmt or fastBPE; empty: text
    is taken and given as the dictionary has it, cut already"""
    target_subwords: str = ""
    """the same of the target; empty: as `source_subwords`"""


class FairseqImporter:
    def __init__(self, config: FairseqFormat):
        self.config = config

    def read(self, source: Path) -> Imported:
        """A checkpoint, old or new, of architecture transformer in any size.

        Raises:
            UserError: a file is missing, or the model has something that ours does not.
        """
        file = _checkpoint(source)
        state = _loaded(file)
        settings, task = _settings(state, file)
        weights = {k: v.float() for k, v in state["model"].items() if not re.fullmatch(IGNORED, k)}
        folder = Path(self.config.data) if self.config.data else file.parent
        languages = self._languages(task, folder)
        vocabularies = {
            s: _dictionary(folder / f"dict.{lang}.txt") for s, lang in languages.items()
        }
        architecture = _architecture(settings, file)
        taken = _upgraded(weights)
        found: dict[str, Tensor] = {}
        for ours, theirs in layer_names(architecture):
            if theirs not in taken:
                raise UserError(
                    f"{file}: the model ({_name(settings)}) has no {theirs}; only transformer, in any size, is read"
                )
            found[ours] = taken.pop(theirs)
        self._tables(found, taken, vocabularies, architecture, file)
        counts = [int(settings.get(f"max_{side}_positions") or 0) for side in ("source", "target")]
        for stack in ("encoder", "decoder"):
            found[f"{stack}_position.weight"] = _positions(
                taken, stack, settings, architecture, max(1024, *counts)
            )
        if taken:
            raise UserError(
                f"{file}: the model ({_name(settings)}) has {min(taken)}, which ours do not have"
            )
        lengths = [len(found[f"{stack}_position.weight"]) for stack in ("encoder", "decoder")]
        for stack in ("encoder", "decoder"):
            found[f"{stack}_position.weight"] = found[f"{stack}_position.weight"][: min(lengths)]
        architecture["position"] = {"name": "learned", "max_positions": min(lengths)}
        joint = architecture["tie_embeddings"] == "all"
        tokenizers = self._tokenizers(vocabularies, joint)
        kind = "words" if isinstance(next(iter(tokenizers.values())), Words) else "marian"
        run = {
            "task": {"name": "translation", **{f"{s}_lang": lang for s, lang in languages.items()}},
            "tokenizer": {"name": kind, "joint": joint},
            "architecture": architecture,
            "data": {"max_length": min(lengths) - 1},
        }
        return Imported(run, tokenizers, found)

    def _languages(self, task: Values, folder: Path) -> dict[str, str]:
        """By side. fairseq-train, where it is not told them, looks for train.XX-YY.* and does not record it."""
        named = [match for path in sorted(folder.glob("*")) if (match := PAIR.match(path.name))]
        found = {}
        for number, side in enumerate(("source", "target"), start=1):
            given = getattr(self.config, f"{side}_lang") or task.get(f"{side}_lang")
            if not given and not named:
                raise UserError(
                    f"{folder} has no train.XX-YY.*, which would name the languages; data=FOLDER says where the data "
                    "is, or source_lang=XX and target_lang=YY what they are"
                )
            found[side] = given or named[0][number]
        return found

    def _tables(
        self, found: dict[str, Tensor], theirs: dict[str, Tensor], vocabularies: dict[str, list[str]],
        architecture: Values, file: Path,
    ) -> None:  # fmt: skip
        """Move the tables of embeddings, in the order of our ids, from `theirs` to `found`."""
        tables = {
            "encoder_embedding.weight": theirs.pop("encoder.embed_tokens.weight"),
            "decoder_embedding.weight": theirs.pop("decoder.embed_tokens.weight"),
        }
        output = theirs.pop("decoder.output_projection.weight", None)
        output = theirs.pop("decoder.embed_out", output)
        tied = architecture["tie_embeddings"]
        if tied == "none":
            if output is None:
                raise UserError(f"{file}: the model has no decoder.output_projection.weight")
            tables["output.weight"] = output
        for name, table in tables.items():
            side = "source" if name.startswith("encoder") else "target"
            count = len(vocabularies[side])
            if len(table) != count:
                raise UserError(
                    f"{file}: the model has {len(table)} symbols of the {side}, its dictionary {count}: another "
                    "dictionary, or a task that adds symbols, which is not read"
                )
            if tied != "all" or name.startswith("encoder"):
                found[name] = table[[*OURS, *range(UNK + 1, count), BOS]]

    def _tokenizers(self, vocabularies: dict[str, list[str]], joint: bool) -> dict[str, Tokenizer]:
        given = subwords_of(self.config)
        made = {}
        for side in ("source",) if joint else ("source", "target"):
            pieces = [*SPECIAL, *vocabularies[side][UNK + 1 :], "<s>"]
            made["joint" if joint else side] = tokenizer_of(pieces, given[side])
        return made


def _checkpoint(source: Path) -> Path:
    if source.is_file():
        return source
    found = next((source / name for name in NAMES if (source / name).is_file()), None)
    if found is None:
        raise UserError(f"{source} has no {', '.join(NAMES)}; give the checkpoint itself")
    return found


# Arrays of numbers, such as BLEU's counts in what --eval-bleu saves, under numpy's names of today and before 2.
_MADE_BY: list[Any] = [numpy.zeros(1).__reduce__()[0], numpy.float64(1).__reduce__()[0]]
_PLAIN: list[Any] = [
    argparse.Namespace,
    numpy.ndarray,
    numpy.dtype,
    *{type(numpy.dtype(code)) for code in "?bBhHiIlLqQefdg"},
    *((f, f"numpy.{core}.multiarray.{f.__name__}") for f in _MADE_BY for core in ("core", "_core")),
]


def _loaded(file: Path) -> Values:
    """What a checkpoint holds; of pickled objects only plain values, tensors, arrays and `argparse.Namespace`."""
    advice = (
        "in fairseq, if you trust the file: s = torch.load(FILE, weights_only=False); "
        "torch.save({k: s[k] for k in ('args', 'cfg', 'model') if k in s}, NEW)"
    )
    with torch.serialization.safe_globals(_PLAIN):
        state = read_pickled(file, advice)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{file} is no checkpoint of fairseq's: it has no model")
    return state


def _settings(state: Values, file: Path) -> tuple[Values, Values]:
    """Those of the model, in one level, and those of the task."""
    cfg = state.get("cfg")
    if cfg:
        model, task = _plain(cfg["model"]), _plain(cfg["task"])
    elif state.get("args") is not None:
        model = task = _plain(state["args"])
    else:
        raise UserError(f"{file} is no checkpoint of fairseq's: it has neither args nor cfg")
    for part in ("encoder", "decoder", "quant_noise"):  # where Hydra made them
        if isinstance(model.get(part), dict):
            model |= {f"{part}_{key}": value for key, value in model.pop(part).items()}
    return model, task


def _plain(values: Any) -> Values:
    return dict(vars(values)) if isinstance(values, argparse.Namespace) else dict(values)


def _name(theirs: Values) -> str:
    return str(theirs.get("_name") or theirs.get("arch") or "unknown")


def _architecture(theirs: Values, file: Path) -> Values:
    """Our settings of a Transformer.

    Raises:
        UserError: it is one that ours cannot be.
    """
    pairs = {"dim": "embed_dim", "ffn_dim": "ffn_embed_dim", "heads": "attention_heads"}
    stacks = ("encoder", "decoder")
    needed = [f"{stack}_{key}" for stack in stacks for key in (*pairs.values(), "layers")]
    if any(not theirs.get(key) for key in needed):
        raise UserError(
            f"{file}: architecture {_name(theirs)} is not read; only transformer, in any size, is"
        )
    both = {ours: [int(theirs[f"{s}_{key}"]) for s in stacks] for ours, key in pairs.items()}
    for ours, (encoder, decoder) in both.items():
        if encoder != decoder:
            raise UserError(
                f"{file}: encoder and decoder differ in {ours}: {encoder} and {decoder}"
            )
    before = {bool(theirs.get(f"{stack}_normalize_before")) for stack in stacks}
    activation = theirs.get("activation_fn") or "relu"
    for wrong, what in (
        (len(before) > 1, "encoder and decoder differ in normalize_before"),
        (activation not in ("relu", "gelu"), f"activation_fn={activation} is none of ours"),
        (theirs.get("no_scale_embedding"), "no_scale_embedding is set; ours are always scaled"),
        (theirs.get("no_token_positional_embeddings"), "it has no positions"),
        (theirs.get("no_cross_attention"), "it has no cross-attention"),
        (theirs.get("cross_self_attention"), "cross_self_attention is set"),
        (theirs.get("layernorm_embedding"), "layernorm_embedding is set; ours are not normalised"),
        (
            theirs.get("adaptive_softmax_cutoff"),
            "its output is an adaptive softmax, which ours has not",
        ),
        (
            theirs.get("no_decoder_final_norm"),
            "no_decoder_final_norm is set; ours ends with a norm",
        ),
        (theirs.get("quant_noise_pq"), "quant_noise_pq is set: it is to be quantised"),
    ):
        if wrong:
            raise UserError(f"{file}: {what}")
    tied = "decoder" if theirs.get("share_decoder_input_output_embed") else "none"
    return {
        "name": "transformer",
        **{ours: encoder for ours, (encoder, _) in both.items()},
        "encoder_layers": int(theirs["encoder_layers"]),
        "decoder_layers": int(theirs["decoder_layers"]),
        "norm": "pre" if before == {True} else "post",
        "activation": activation,
        "dropout": float(theirs.get("dropout") or 0),
        "attention_dropout": float(theirs.get("attention_dropout") or 0),
        "activation_dropout": float(theirs.get("activation_dropout") or theirs.get("relu_dropout") or 0),
        "tie_embeddings": "all" if theirs.get("share_all_embeddings") else tied,
    }  # fmt: skip


def _upgraded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the maps of queries, keys and values apart, which were one before fairseq 0.9."""
    made = {}
    for name, tensor in weights.items():
        if "in_proj_" not in name:
            made[name] = tensor
            continue
        for piece, part in zip("qkv", tensor.chunk(3), strict=True):
            made[re.sub("in_proj_(weight|bias)", rf"{piece}_proj.\1", name)] = part
    return made


def layer_names(architecture: Values) -> Iterator[tuple[str, str]]:
    """(our name, fairseq's) of each weight but those of embeddings and positions.

    Args:
        architecture: our settings of a Transformer, of which encoder_layers, decoder_layers and norm count.
    """
    for stack, attentions in (
        ("encoder", {"attention": "self_attn"}),
        ("decoder", {"attention": "self_attn", "cross": "encoder_attn"}),
    ):
        for n in range(architecture[f"{stack}_layers"]):
            ours, theirs = f"{stack}.{n}", f"{stack}.layers.{n}"
            pairs = {f"{own}.norm": f"{name}_layer_norm" for own, name in attentions.items()}
            for own, name in attentions.items():
                pairs |= {f"{own}.body.{p}": f"{name}.{p}_proj" for p in ("q", "k", "v", "out")}
            pairs |= {
                "ffn.norm": "final_layer_norm",
                "ffn.body.inner": "fc1",
                "ffn.body.outer": "fc2",
            }
            for own, name in pairs.items():
                for kind in ("weight", "bias"):
                    yield f"{ours}.{own}.{kind}", f"{theirs}.{name}.{kind}"
        if architecture["norm"] == "pre":
            for kind in ("weight", "bias"):
                yield f"{stack}_norm.{kind}", f"{stack}.layer_norm.{kind}"


def _positions(
    theirs: dict[str, Tensor], stack: str, settings: Values, architecture: Values, count: int
) -> Tensor:
    """(P, C): learnt ones without the rows before a sentence's first, or the sinusoids as a table.

    fairseq's frequencies and first position are others than those of the paper and of ours, so its
    sinusoids become a table, too.
    """
    learnt = theirs.pop(f"{stack}.embed_positions.weight", None)
    if settings.get(f"{stack}_learned_pos") and learnt is not None:
        return learnt[FIRST:]
    dim = architecture["dim"]
    half = dim // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(FIRST, FIRST + count)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.nn.functional.pad(table, (0, dim - 2 * half))


def _dictionary(file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"{file} is missing: data=FOLDER says where the dictionaries are")
    symbols = ["<s>", *SPECIAL]
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        symbol, blank, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not blank or not count.strip().isdecimal():
            raise UserError(f"{file}:{number}: expected a symbol and its count, got '{line}'")
        symbols.append(symbol)
    return symbols


@mtplug.hookimpl
def register_exporters(register):
    register("fairseq", FairseqImporter, FairseqFormat)
