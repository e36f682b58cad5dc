"""Format `t5`: folders of transformers' T5ForConditionalGeneration and MT5ForConditionalGeneration, read and written.

Shapes: V vocabulary, C model size, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtplug.data.byte_tokenizer import Bytes
from mtplug.data.sentencepiece_file import renumbered
from mtplug.data.tokenizers import SentencePiece, Tokenizer, pieces_of
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.hugging_face import LikeExporter, read_settings, read_weights, taken
from mtplug_t5.model import T5

ACTIVATIONS = {
    "relu": "relu", "gated-gelu": "geglu_tanh", "gated-gelu_new": "geglu_tanh", "gated-silu": "swiglu",
    "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "swish",
}  # fmt: skip
SUBWORDS = ("spiece.model", "spm.model", "sentencepiece.model")
SHARED, OUTPUT = "shared.weight", "lm_head.weight"
TIED = (SHARED, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
"""In the first checkpoints of T5; nothing looks at it."""
SENTINELS = 100
"""`<extra_id_0>` and so on, which stand for what was left out of a text; the last ids in falling order."""
STACKS = ("encoder", "decoder")


@dataclass
class T5Format:
    """A folder of T5, mT5, Flan-T5, ByT5 or MADLAD-400 for `transformers`. Writing wants `like`."""

    source_lang: str = ""
    """the run's task.source_lang"""
    target_lang: str = ""
    """the run's task.target_lang; decides how BLEU tokenises"""
    like: str = ""
    """for writing: the folder that the model was read from, whose settings and tokenizer stay as they are"""


class T5Exporter(LikeExporter):
    name, architecture = "t5", T5
    kept = ("dim", "ffn_dim", "heads", "encoder_layers", "decoder_layers", "activation")

    def settings(self, config: dict[str, Any], where: Path) -> dict[str, Any]:
        return _architecture(config, where)

    def tensors(
        self,
        weights: dict[str, Tensor],
        settings: dict[str, Any],
        config: dict[str, Any],
        like: Path,
    ) -> dict[str, Tensor]:
        _, rows = _vocabulary(like, config)
        tensors = {
            theirs: weights[ours] / factor for ours, theirs, factor in _names(settings, config)
        }
        root = math.sqrt(settings["dim"])
        table = weights["encoder_embedding.weight"]
        tensors[SHARED] = _placed(table * root, rows)
        tensors[SHARED][config["decoder_start_token_id"]] = weights["start_embedding"] * root
        if not torch.equal(weights["output.weight"], table):  # it is not the same one
            output = weights["output.weight"]
            tensors[OUTPUT] = _placed(output * root if _scaled(config) else output, rows)
        return tensors

    def read(self, source: Path) -> Imported:
        """A folder with config.json, the weights, and spiece.model; of ByT5 without it.

        Raises:
            UserError: a file is missing, or the model has something that ours does not.
        """
        config = read_settings(source / "config.json")
        settings = _architecture(config, source)
        tokenizer, rows = _vocabulary(source, config)
        theirs = read_weights(source)
        theirs.pop(UNUSED, None)
        found = {
            ours: taken(theirs, name, source) * factor
            for ours, name, factor in _names(settings, config)
        }
        tables = [theirs.pop(name) for name in TIED if name in theirs]
        if not tables or any(not torch.equal(t, tables[0]) for t in tables):
            raise UserError(f"{source}: embeddings of source and target are not one table, as ours")
        table, root = tables[0], math.sqrt(config["d_model"])
        output = theirs.pop(OUTPUT, table)
        # T5 itself divides features by the root before the shared table makes logits of them.
        scaled = _scaled(config)
        tied = scaled and torch.equal(output, table)
        settings["tie_embeddings"] = "all" if tied else "none"
        if not tied:
            found["output.weight"] = (output / root if scaled else output)[rows]
        found["encoder_embedding.weight"] = (table / root)[rows]
        found["start_embedding"] = table[config["decoder_start_token_id"]] / root
        if theirs:
            raise UserError(f"{source}: the model has {min(theirs)}, which ours do not have")
        kind: dict[str, Any] = {"name": "bytes", "user_symbols": getattr(tokenizer, "symbols", [])}
        if isinstance(tokenizer, SentencePiece):
            kind = {"name": "sentencepiece", "vocab_size": len(tokenizer)}
        run = {
            "task": {
                "name": "translation", "source_lang": self.config.source_lang, "target_lang": self.config.target_lang
            },
            "tokenizer": {"joint": True, **kind},
            "architecture": settings,
            "data": {"max_length": int(config.get("n_positions", 512))},
        }  # fmt: skip
        return Imported(run, {"joint": tokenizer}, found)


def _architecture(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Our settings; raises `UserError` if the model is one that ours cannot be."""
    kind, activation = config.get("model_type"), config.get("feed_forward_proj", "relu")
    for wrong, what in (
        (kind not in ("t5", "mt5"), f"model_type is {kind}, neither t5 nor mt5"),
        (activation not in ACTIVATIONS, f"feed_forward_proj {activation} is none of ours"),
        (config.get("layer_norm_epsilon", 1e-6) != 1e-6, "layer_norm_epsilon is not 1e-6, as ours"),
    ):
        if wrong:
            raise UserError(f"{where}: {what}")
    dropout = float(config.get("dropout_rate", 0.1))
    return {
        "name": "t5", "dim": config["d_model"], "ffn_dim": config["d_ff"], "heads": config["num_heads"],
        "head_dim": config["d_kv"], "norm": "pre", "norm_type": "rms",
        "encoder_layers": config["num_layers"],
        "decoder_layers": config.get("num_decoder_layers") or config["num_layers"],
        "activation": ACTIVATIONS[activation],
        "dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout,
        "position": {
            "name": "t5_bias", "buckets": config.get("relative_attention_num_buckets", 32),
            "max_distance": config.get("relative_attention_max_distance", 128),
        },
    }  # fmt: skip


def _scaled(config: dict[str, Any]) -> bool:
    """Whether features are divided by the root of the model size before they become logits.

    transformers 4 did so where `tie_word_embeddings` was true. 5 writes true whatever the model is, never does so for mT5,
    and has a setting of its own for T5.
    """
    if "scale_decoder_outputs" in config:
        return bool(config["scale_decoder_outputs"])
    version = str(config.get("transformers_version") or "4").partition(".")[0]
    never = config["model_type"] == "mt5" and version.isdecimal() and int(version) >= 5
    return config.get("tie_word_embeddings", True) and not never


def _names(
    settings: dict[str, Any], config: dict[str, Any]
) -> Iterator[tuple[str, str, float | Tensor]]:
    """(our name, theirs, ours divided by theirs) of each weight but the tables."""
    root = math.sqrt(config["d_kv"])  # ours divide scores by it
    inner = {"inner": "wi", "outer": "wo"}
    if settings["activation"] in ("geglu_tanh", "swiglu"):
        inner = {"gate": "wi_0", "inner": "wi_1", "outer": "wo"}
    for stack in STACKS:
        attentions = [("attention", "SelfAttention")]
        if stack == "decoder":
            attentions.append(("cross", "EncDecAttention"))
        for n in range(settings[f"{stack}_layers"]):
            block = f"{stack}.block.{n}.layer"
            for place, (own, name) in enumerate(attentions):
                at = f"{stack}.{n}.{own}"
                for piece, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
                    factor = root if piece == "q" else 1.0
                    yield (
                        f"{at}.body.{piece}.weight",
                        f"{block}.{place}.{name}.{theirs}.weight",
                        factor,
                    )
                yield f"{at}.norm.weight", f"{block}.{place}.layer_norm.weight", 1.0
            last, at = f"{block}.{len(attentions)}", f"{stack}.{n}.ffn"
            for own, name in inner.items():
                yield f"{at}.body.{own}.weight", f"{last}.DenseReluDense.{name}.weight", 1.0
            yield f"{at}.norm.weight", f"{last}.layer_norm.weight", 1.0
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"{stack}_position.weight", bias, 1.0
        yield f"{stack}_norm.weight", f"{stack}.final_layer_norm.weight", 1.0


def _vocabulary(folder: Path, config: dict[str, Any]) -> tuple[Tokenizer, list[int]]:
    """The tokenizer, of as many ids as the model has, and their id of each of ours."""
    count, special = config["vocab_size"], (config["pad_token_id"], config["eos_token_id"])
    file = next((folder / name for name in SUBWORDS if (folder / name).is_file()), None)
    if file is None:
        told = (config, read_settings(folder / "tokenizer_config.json", {}))
        if not any("ByT5" in str(one.get("tokenizer_class")) for one in told):
            raise UserError(f"{folder} has no {SUBWORDS[0]}, and does not say that it is ByT5")
        made = Bytes()
        return Bytes(f"<extra_id_{n}>" for n in range(count - len(made))), list(range(count))
    try:
        raw = file.read_bytes()
        theirs = SentencePiece(raw)
        made_of = SentencePiece(renumbered(raw))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file}: no SentencePiece model: {error}") from None
    ids = {piece: i for i, piece in enumerate(pieces_of(theirs))}
    rows = [*special, theirs.processor.unk_id()]
    rows += [ids[piece] for piece in pieces_of(made_of)[len(rows) :]]
    known = set(rows)
    left = [i for i in range(count) if i not in known]
    sentinels = [i for i in left if i >= len(theirs)][:SENTINELS]
    if "<extra_id_0>" in ids:  # as in mT5, whose SentencePiece has them
        sentinels = []
    names = {i: f"<extra_id_{n}>" for n, i in enumerate(reversed(sentinels))}
    symbols = [(names.get(i, f"<unused-{i}>"), 0.0) for i in left]
    return made_of.extended(symbols, symbols=True), rows + left


def _placed(table: Tensor, rows: list[int]) -> Tensor:
    """A table in the order of their ids."""
    made = torch.empty_like(table)
    made[rows] = table
    return made
