"""Marian's own format, read: `model.npz` with its vocabularies becomes a run of architecture `marian`.

Names of weights and options as in Marian 1.9 to 1.12 (Junczys-Dowmunt et al. 2018). Matrices lie there as
(inputs, outputs). Shapes: V vocabulary, C model size.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import sentencepiece
import torch
import yaml
from torch import Tensor

import mtplug
from mtplug.data.merged_words import Words
from mtplug.data.tokenizers import SPECIAL, Tokenizer
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.marian import ACTIVATIONS, ARCHITECTURE, SHARED, TABLES, own_weights
from mtplug.exporting.marian_model import MarianTokenizer, tokenizer_of
from mtplug.files import damaged

OPTIONS = "special:model.yml"
NEVER = -100.0
"""Bias of our symbol for padding, which Marian's models lack and so never give."""
ASSUMED: dict[str, Any] = {
    "type": "transformer", "right-left": False, "layer-normalization": False, "skip": False,
    "transformer-preprocess": "", "transformer-postprocess": "dan", "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": "", "transformer-decoder-autoreg": "self-attention",
    "transformer-train-position-embeddings": False, "transformer-no-projection": False,
    "transformer-tied-layers": [], "transformer-ffn-depth": 2, "transformer-decoder-dim-ffn": 0,
    "transformer-pool": False, "lemma-dim-emb": 0, "lemma-dependency": "", "ulr-dim-emb": 0,
}  # fmt: skip
"""Options with the only value that ours has, which is also what an older model's file means by not naming them."""
STACKS = ("encoder", "decoder")
TABLE_NAMES = {
    "Wemb": SHARED,
    "encoder_Wemb": TABLES["encoder_embedding.weight"],
    "decoder_Wemb": TABLES["decoder_embedding.weight"],
    "decoder_ff_logit_out_W": TABLES["output.weight"],
    "decoder_ff_logit_out_Wt": TABLES["output.weight"],
    "decoder_ff_logit_out_b": "final_logits_bias",
}
LAYER = re.compile(r"(encoder|decoder)_l(\d+)_(self|context|ffn)_(\w+)")
BLOCKS = {
    "self": ("self_attn", "self_attn_layer_norm"),
    "context": ("encoder_attn", "encoder_attn_layer_norm"),
    "ffn": ("", "final_layer_norm"),
}
KINDS = {"W": "weight", "b": "bias", "scale": "weight"}


@dataclass
class MarianNpzFormat:
    """A post-norm Transformer that Marian trained; it is only read. `source` is its .npz, or the folder of one."""

    vocabs: list[str] = field(default_factory=list)
    """vocabularies of source and target, each a .spm, a .yml or a text with a piece on each line; empty: what
    decoder.yml, MODEL.decoder.yml or MODEL.yml beside the model names"""
    source_subwords: str = ""
    """where the vocabulary is no .spm, what cut the source into subwords: a model of SentencePiece (.model, .spm), or
    codes of subword-nmt or fastBPE; empty: source.spm beside the model, else text is taken and given as the vocabulary
    has it, cut already"""
    target_subwords: str = ""
    """the same of the target; empty: target.spm beside the model, else as `source_subwords`"""
    source_lang: str = ""
    """language of the source, such as de, for scores that depend on it"""
    target_lang: str = ""
    """likewise of the target"""


class MarianNpzImporter:
    def __init__(self, config: MarianNpzFormat):
        self.config = config

    def read(self, source: Path) -> Imported:
        """The model of a .npz, with its vocabularies, and beam and length penalty of its decoder.yml.

        Raises:
            UserError: a file is missing or damaged, or the model has something that ours does not.
        """
        file = _model(source)
        arrays = _loaded(file)
        options = _options(arrays, file)
        named = _named(file)
        taken = dict(_renamed(name, _tensor(x, file), file) for name, x in arrays.items())
        bias = taken.pop("final_logits_bias", None)
        tied = "none" if TABLES["output.weight"] in taken else "decoder"
        if SHARED in taken:
            shared = taken.pop(SHARED)
            taken |= {TABLES[f"{stack}_embedding.weight"]: shared for stack in STACKS}
            tied = "all" if tied == "decoder" else "none"
        rows, tokenizers = self._sides(named, taken, file)
        architecture = _architecture(options, arrays) | {"tie_embeddings": tied}
        for name in TABLES.values():
            if name in taken:
                taken[name] = torch.nn.functional.pad(taken[name], (0, 0, 0, 1))
        try:
            weights = own_weights(taken, architecture, rows)
        except KeyError as missing:
            raise UserError(f"{file}: the model has no {missing.args[0]}") from None
        weights["start_embedding"] = torch.zeros(architecture["dim"])
        logits = torch.zeros(1, len(rows["target"]) - 1) if bias is None else bias
        logits = torch.nn.functional.pad(logits[0], (0, 1), value=NEVER)
        weights["output_bias"] = logits[rows["target"]]
        words = isinstance(tokenizers["source"], Words)
        languages = {f"{s}_lang": getattr(self.config, f"{s}_lang") for s in ("source", "target")}
        settings: dict[str, Any] = {
            "task": {"name": "translation", **languages},
            "tokenizer": {"name": "words" if words else "marian", "joint": False},
            "architecture": {**ARCHITECTURE, **architecture},
        }
        if "beam-size" in named:
            settings["search"] = {
                "beam": named["beam-size"],
                "length_penalty": float(named.get("normalize", 0)),
                "allow_unknown": bool(named.get("allow-unk", False)),
            }
        return Imported(settings, tokenizers, weights)

    def _sides(
        self, named: dict[str, Any], taken: dict[str, Tensor], file: Path
    ) -> tuple[dict[str, list[int]], dict[str, Tokenizer]]:
        """By side, which row of the table each of our ids has, and the tokenizer; padding's row is behind the last."""
        rows: dict[str, list[int]] = {}
        tokenizers: dict[str, Tokenizer] = {}
        vocabularies = self._vocabularies(named, file)
        for side, stack, vocabulary in zip(("source", "target"), STACKS, vocabularies, strict=True):
            pieces, eos, unk, model = vocabulary
            table = TABLES[f"{stack}_embedding.weight"]
            if table not in taken:
                raise UserError(f"{file}: the model has no {table}")
            count = len(taken[table])
            if len(pieces) > count:
                raise UserError(
                    f"{file}: the model has {count} symbols of the {side}, its vocabulary {len(pieces)}: another "
                    "vocabulary; vocabs=[SOURCE,TARGET] names the right ones"
                )
            pieces = pieces + [f"<unused_{i}>" for i in range(len(pieces), count)]
            rest = [i for i in range(count) if i not in (eos, unk)]
            rows[side] = [count, eos, unk, *rest]
            ours = [*SPECIAL, *(pieces[i] for i in rest)]
            tokenizers[side] = (
                MarianTokenizer(model, ours)
                if model
                else tokenizer_of(ours, self._subwords(side, file))
            )
        if len({type(tokenizer) for tokenizer in tokenizers.values()}) > 1:
            raise UserError("vocabs, source_subwords, target_subwords: give files of one kind")
        return rows, tokenizers

    def _vocabularies(
        self, named: dict[str, Any], file: Path
    ) -> list[tuple[list[str], int, int, bytes]]:
        """Of both sides: pieces by id, the ids of `</s>` and `<unk>`, and the model of SentencePiece, if it is one."""
        paths = self.config.vocabs or named.get("vocabs")
        if not paths or len(paths) != 2:
            raise UserError(
                f"{file}: no decoder.yml beside it names two vocabularies; vocabs=[SOURCE,TARGET] does"
            )
        found = []
        for path in map(Path, paths):
            if not self.config.vocabs:
                # Written on another machine, mostly: beside the model is where they then lie.
                path = next(
                    (p for p in (file.parent / path, file.parent / path.name) if p.is_file()), path
                )
            found.append(_vocabulary(path))
        return found

    def _subwords(self, side: str, file: Path) -> str:
        own = self.config.target_subwords if side == "target" else ""
        given = own or self.config.source_subwords
        beside = file.parent / f"{side}.spm"
        return given or (str(beside) if beside.is_file() else "")


def _model(source: Path) -> Path:
    if source.suffix == ".bin":
        raise UserError(f"{source} is a converted model; give the .npz that marian-conv was given")
    if not source.is_dir():
        return source
    found = [p for p in sorted(source.glob("*.npz")) if not p.name.endswith(".optimizer.npz")]
    if (source / "decoder.yml").is_file():
        models = _yaml(source / "decoder.yml").get("models") or []
        found = [p for p in found if p.name in {Path(m).name for m in models[:1]}] or found
    if len(found) != 1:
        which = ", ".join(p.name for p in found) or "none"
        raise UserError(f"{source} should have one model in a .npz, and has {which}; give the file")
    return found[0]


def _loaded(file: Path) -> dict[str, numpy.ndarray]:
    try:
        with numpy.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except OSError:
        raise
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise damaged(file, error) from None


def _options(arrays: dict[str, numpy.ndarray], file: Path) -> dict[str, Any]:
    """What the model's file says of itself; it is taken out of `arrays`.

    Raises:
        UserError: it says nothing, or an option has a value that ours does not have.
    """
    if OPTIONS not in arrays:
        raise UserError(f"{file} is no model of Marian's: it has no {OPTIONS}")
    text = arrays.pop(OPTIONS).tobytes().rstrip(b"\0")
    try:
        options = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(file, error) from None
    for name, value in ASSUMED.items():
        if (has := options.get(name, value)) != value:
            raise UserError(f"{file}: {name} is {has!r}; only models with {value!r} are read")
    activation = options["transformer-ffn-activation"]
    if activation not in ACTIVATIONS:
        raise UserError(f"{file}: activation {activation} is none of ours")
    return options


def _tensor(array: numpy.ndarray, file: Path) -> Tensor:
    if array.dtype.kind != "f":
        raise UserError(
            f"{file} holds {array.dtype} weights, it is quantised; give the model before that"
        )
    return torch.from_numpy(array).float()


def _renamed(name: str, x: Tensor, file: Path) -> tuple[str, Tensor]:
    """A weight by `MarianMTModel`'s name and in its shape.

    Raises:
        UserError: there is none like it.
    """
    if name in TABLE_NAMES:
        return TABLE_NAMES[name], x.T if name.endswith("_out_W") else x
    if match := LAYER.fullmatch(name):
        stack, number, block, rest = match.groups()
        body, norm = BLOCKS[block]
        at = f"model.{stack}.layers.{int(number) - 1}"
        if part := re.fullmatch(r"(?:Wo|ffn)_ln_(scale|bias)", rest):
            return f"{at}.{norm}.{KINDS.get(part[1], part[1])}", x[0]
        if part := re.fullmatch(r"([Wb])([qkvo]|[12])", rest):
            kind, which = part.groups()
            inner = f"fc{which}" if which.isdigit() else f"{body}.{which}_proj"
            inner = inner.replace("o_proj", "out_proj")
            return f"{at}.{inner}.{KINDS[kind]}", x.T if kind == "W" else x[0]
    raise UserError(f"{file}: the model has {name}, which ours do not have")


def _architecture(options: dict[str, Any], arrays: dict[str, numpy.ndarray]) -> dict[str, Any]:
    return {
        "dim": options["dim-emb"], "ffn_dim": options["transformer-dim-ffn"],
        "heads": options["transformer-heads"],
        **{f"{stack}_layers": _depth(arrays, stack) for stack in STACKS},
        "activation": ACTIVATIONS[options["transformer-ffn-activation"]],
        "dropout": options.get("transformer-dropout", 0.0),
        "attention_dropout": options.get("transformer-dropout-attention", 0.0),
        "activation_dropout": options.get("transformer-dropout-ffn", 0.0),
    }  # fmt: skip


def _depth(arrays: dict[str, numpy.ndarray], stack: str) -> int:
    numbers = [int(m[2]) for m in map(LAYER.match, arrays) if m and m[1] == stack]
    return max(numbers, default=0)


def _named(file: Path) -> dict[str, Any]:
    """The settings of decoding beside a model, or those that it was trained with; empty without either."""
    folder = file.parent
    places = [folder / "decoder.yml", *(Path(f"{file}{end}") for end in (".decoder.yml", ".yml"))]
    for place in [*places, *sorted(folder.glob("*.decoder.yml"))]:
        if place.is_file() and (found := _yaml(place)).get("vocabs"):
            return found
    return {}


def _yaml(file: Path, loader: str = "SafeLoader") -> dict[str, Any]:
    loaders = getattr(yaml, loader), getattr(yaml, f"C{loader}", None)  # in C, where that was built
    try:
        found = yaml.load(file.read_bytes(), loaders[1] or loaders[0])
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(file, error) from None
    if not found or not isinstance(found, dict):
        raise damaged(file, "it holds no names with values")
    return found


def _vocabulary(file: Path) -> tuple[list[str], int, int, bytes]:
    """Pieces by id, the ids of `</s>` and `<unk>`, and the file itself if it is a model of SentencePiece."""
    if not file.is_file():
        raise UserError(
            f"{file} is missing: vocabs=[SOURCE,TARGET] says where the vocabularies are"
        )
    if file.suffix == ".spm":
        raw = file.read_bytes()
        try:
            model = sentencepiece.SentencePieceProcessor(model_proto=raw)
        except RuntimeError as error:
            raise damaged(file, error) from None
        pieces = [model.id_to_piece(i) for i in range(len(model))]
        return pieces, model.eos_id(), model.unk_id(), raw
    if file.suffix in (".yml", ".yaml", ".json"):
        ids = _yaml(file, "BaseLoader")  # which takes no, 1e3 and null for the words that they are
        try:
            by_id = {int(i): piece for piece, i in ids.items()}
        except (TypeError, ValueError) as error:
            raise damaged(file, error) from None
        pieces = [by_id.get(i, f"<unused_{i}>") for i in range(max(by_id) + 1)]
    else:
        pieces = file.read_text(encoding="utf-8").splitlines()
    for symbol in ("</s>", "<unk>"):
        if symbol not in pieces:
            raise UserError(f"{file} has no {symbol}: it is no vocabulary of Marian's")
    return pieces, pieces.index("</s>"), pieces.index("<unk>"), b""


@mtplug.hookimpl
def register_exporters(register):
    register("marian_npz", MarianNpzImporter, MarianNpzFormat)
