"""Hugging Face's Marian format: post-norm Transformers out, OPUS-MT and its kin in and, fine-tuned, out again.

Both have sinusoidal positions, but ours alternate sines and cosines where theirs have all sines first. So
the model dimension of every weight is permuted. Shapes: V vocabulary, C model size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtplug
from mtplug.architectures.transformer import Transformer
from mtplug.data.tokenizers import EOS, PAD, SentencePiece, Tokenizer, pieces_of
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.hugging_face import read_settings, read_weights
from mtplug.exporting.marian_model import Marian, MarianTokenizer
from mtplug.files import save_tensors
from mtplug.nn.positions import Sinusoidal

TABLES = {
    "encoder_embedding.weight": "model.encoder.embed_tokens.weight",
    "decoder_embedding.weight": "model.decoder.embed_tokens.weight",
    "output.weight": "lm_head.weight",
}
SHARED = "model.shared.weight"
ARCHITECTURE = {"name": "marian", "norm": "post", "position": {"name": "sinusoidal"}}
"""What all models of Marian's have in common that are read."""
OWN = ("start_embedding", "output_bias")
"""Parameters of architecture `marian` beside a Transformer's."""
NEVER = -1e4
"""A logit of no probability, in half precision too."""
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}


@dataclass
class MarianFormat:
    """A folder for `transformers.MarianMTModel` and `MarianTokenizer`, written and read."""

    positions: int = 1024
    """longest sentence in tokens that the exported model takes"""


class MarianExporter:
    def __init__(self, config: MarianFormat):
        self.config = config

    def why_not(self, model: Any, task: Any) -> str:
        """What of a model Marian does not have; empty if it has all."""
        if type(model) not in (Transformer, Marian):
            return (
                "Marian's format takes architectures transformer and marian, not "
                f"{type(model).__name__}"
            )
        if model.config.norm != "post":
            return "Marian is post-norm; use architecture.norm=post"
        position = model.encoder_position
        if type(position) is not Sinusoidal:
            return (
                f"Marian has no {model.config.position.name} positions; use "
                "architecture.position.name=sinusoidal"
            )
        if model.config.activation not in ACTIVATIONS:
            return f"Marian has no activation {model.config.activation}"
        if model.config.norm_type != "layer":
            return "Marian has layer normalisation only; use architecture.norm_type=layer"
        if model.config.kv_heads not in (0, model.config.heads):
            return "Marian's heads share no keys; use architecture.kv_heads=0"
        if model.config.head_dim not in (0, model.config.dim // model.config.heads):
            return "Marian's heads share out the model size; use architecture.head_dim=0"
        names = (ours for ours, _, _ in _names(len(model.encoder), len(model.decoder)))
        ours = {*names, *TABLES, *(OWN if isinstance(model, Marian) else ())}
        extra = sorted(set(model.state_dict()) - ours)
        if extra:
            return f"Marian has nothing like {extra[0]}"
        for tokenizer in (task.source_tokenizer, task.target_tokenizer):
            if not isinstance(tokenizer, Tokenizer):
                continue  # its size is all that is known before a run
            if not isinstance(tokenizer, SentencePiece) and type(tokenizer) is not MarianTokenizer:
                return f"Marian has SentencePiece only, not {type(tokenizer).__name__}"
            if len(pieces := pieces_of(tokenizer)) != len(set(pieces)):
                return "a piece is in the vocabulary twice, which Marian's cannot hold"
        return ""

    def export(self, translator: Any, path: Path) -> None:
        """Write config.json, model.safetensors, vocab.json, source.spm, target.spm and settings.

        Raises:
            UserError: Marian cannot take the model.
        """
        model, task = translator.model, translator.task
        if reason := self.why_not(model, task):
            raise UserError(f"exporter marian: {reason}")
        c = model.config
        source, target = task.source_tokenizer, task.target_tokenizer
        separate = pieces_of(source) != pieces_of(target)
        first = PAD if isinstance(model, Marian) else EOS
        path.mkdir(parents=True, exist_ok=True)
        save_tensors(_tensors(model), path / "model.safetensors", {"format": "pt"})
        _write(path / "config.json", {
            "model_type": "marian", "architectures": ["MarianMTModel"], "dtype": "float32",
            "vocab_size": len(source), "decoder_vocab_size": len(target),
            "d_model": c.dim, "scale_embedding": True,
            "activation_function": c.activation, "dropout": c.dropout,
            "attention_dropout": c.attention_dropout, "activation_dropout": c.activation_dropout,
            "encoder_layers": c.encoder_layers, "decoder_layers": c.decoder_layers,
            "encoder_attention_heads": c.heads, "decoder_attention_heads": c.heads,
            "encoder_ffn_dim": c.ffn_dim, "decoder_ffn_dim": c.ffn_dim,
            "max_position_embeddings": self.config.positions,
            "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": first,
            "forced_eos_token_id": EOS,
            "share_encoder_decoder_embeddings": c.tie_embeddings == "all",
            "tie_word_embeddings": c.tie_embeddings != "none",
        })  # fmt: skip
        search = translator.search.config
        _write(path / "generation_config.json", {
            "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": first,
            "forced_eos_token_id": EOS, "bad_words_ids": [[PAD]],
            "max_length": min(512, self.config.positions),
            "num_beams": getattr(search, "beam", 1), "early_stopping": True,
            "length_penalty": getattr(search, "length_penalty", 1.0),
        })  # fmt: skip
        languages = {
            f"{side}_lang": getattr(task.config, f"{side}_lang", "")
            for side in ("source", "target")
        }
        _write(path / "tokenizer_config.json", {
            "tokenizer_class": "MarianTokenizer", "separate_vocabs": separate, **languages,
            "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
            "model_max_length": self.config.positions,
        })  # fmt: skip
        for side, tokenizer in (("source", source), ("target", target)):
            (path / f"{side}.spm").write_bytes(tokenizer.model)
        _write(path / "vocab.json", _vocabulary(source))
        if separate:
            _write(path / "target_vocab.json", _vocabulary(target))

    def read(self, source: Path) -> Imported:
        """A folder that `MarianMTModel` and `MarianTokenizer` open, such as an OPUS-MT model.

        Raises:
            UserError: a file is missing, or the model has something that ours does not.
        """
        config = read_settings(source / "config.json")
        named = read_settings(source / "tokenizer_config.json", {})
        if config.get("model_type") != "marian":
            raise UserError(f"{source}: model_type is {config.get('model_type')}, not marian")
        if not config.get("scale_embedding"):
            raise UserError(f"{source}: scale_embedding is false; ours are always scaled")
        for key in ("attention_heads", "ffn_dim"):
            if config[f"encoder_{key}"] != config[f"decoder_{key}"]:
                raise UserError(f"{source}: encoder and decoder differ in {key}")
        if config["activation_function"] not in ACTIVATIONS:
            raise UserError(f"{source}: activation {config['activation_function']} is none of ours")
        theirs = read_weights(source)
        shared = config.get("share_encoder_decoder_embeddings", True)
        tied = "all" if shared else "decoder"
        tied = tied if config.get("tie_word_embeddings", True) else "none"
        separate = named.get("separate_vocabs", False)
        pad, eos = config["pad_token_id"], config["eos_token_id"]
        vocabularies = [read_settings(source / "vocab.json")] * 2
        if separate:
            vocabularies[1] = read_settings(source / "target_vocab.json")
        rows: dict[str, list[int]] = {}
        tokenizers: dict[str, Tokenizer] = {}
        for side, vocabulary in zip(("source", "target"), vocabularies, strict=True):
            pieces = {i: piece for piece, i in vocabulary.items()}
            special = [pad, eos, vocabulary["<unk>"]]
            rows[side] = special + [i for i in sorted(pieces) if i not in special]
            written = [pieces.get(i, "<pad>") for i in rows[side]]
            tokenizers[side] = MarianTokenizer((source / f"{side}.spm").read_bytes(), written)
        languages = {
            f"{side}_lang": named.get(f"{side}_lang") or "" for side in ("source", "target")
        }
        architecture = {
            "dim": config["d_model"], "ffn_dim": config["encoder_ffn_dim"],
            "heads": config["encoder_attention_heads"],
            "encoder_layers": config["encoder_layers"], "decoder_layers": config["decoder_layers"],
            "activation": ACTIVATIONS[config["activation_function"]],
            "dropout": config.get("dropout", 0.1), "tie_embeddings": tied,
        }  # fmt: skip
        weights = own_weights(theirs, architecture, rows)
        own = TABLES["decoder_embedding.weight"]
        first = (theirs[own] if own in theirs else theirs[SHARED])[config["decoder_start_token_id"]]
        order = _sines_first(config["d_model"]).argsort()
        weights["start_embedding"] = _permuted(first, order, "rows")
        bias = theirs.get("final_logits_bias")
        count = len(rows["target"])
        weights["output_bias"] = torch.zeros(count) if bias is None else bias[0][rows["target"]]
        settings = {
            "task": {"name": "translation", **languages},
            "tokenizer": {"name": "marian", "joint": False, "vocab_size": count},
            "architecture": {**ARCHITECTURE, **architecture},
            "data": {"max_length": config["max_position_embeddings"] // 2},
        }
        return Imported(settings, tokenizers, weights)


def _tensors(model: Transformer) -> dict[str, Tensor]:
    """A `MarianMTModel`'s, from those of `transformer` or `marian`."""
    c = model.config
    weights = {k: v.detach().float().cpu() for k, v in model.state_dict().items()}
    order = _sines_first(c.dim)
    tensors = {
        theirs: _permuted(weights[ours], order, how)
        for ours, theirs, how in _names(len(model.encoder), len(model.decoder))
    }
    tied = {
        "all": {"encoder_embedding.weight": SHARED},
        "decoder": {k: v for k, v in TABLES.items() if k != "output.weight"},
        "none": TABLES,
    }[c.tie_embeddings]
    for ours, theirs in tied.items():
        tensors[theirs] = _permuted(weights[ours], order, "columns")
    rows = weights["decoder_embedding.weight"]
    bias = weights.get("output_bias", torch.zeros(len(rows))).clone()
    if isinstance(model, Marian):
        # Decoding begins with the padding there, so its row is what decoding begins with here.
        begins = weights["start_embedding"]
        table = SHARED if c.tie_embeddings == "all" else TABLES["decoder_embedding.weight"]
        if c.tie_embeddings != "none" and not torch.equal(rows[PAD], begins):
            bias[PAD] = NEVER  # the row was the output's, too, where padding is never right
        tensors[table] = tensors[table].clone()
        tensors[table][PAD] = _permuted(begins, order, "rows")
    tensors["final_logits_bias"] = bias[None]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def own_weights(
    theirs: dict[str, Tensor], architecture: dict[str, Any], rows: dict[str, list[int]]
) -> dict[str, Tensor]:
    """Layers and tables of our `marian`, from a `MarianMTModel`'s.

    Args:
        architecture: dim, encoder_layers, decoder_layers and tie_embeddings of ours.
        rows: by side, which row of their tables each of our ids has.
    """
    order = _sines_first(architecture["dim"]).argsort()
    layers = architecture["encoder_layers"], architecture["decoder_layers"]
    weights = {ours: _permuted(theirs[name], order, how) for ours, name, how in _names(*layers)}
    wanted = {"all": 1, "decoder": 2, "none": 3}[architecture["tie_embeddings"]]
    for ours, name in list(TABLES.items())[:wanted]:
        table = theirs[name] if name in theirs else theirs[SHARED]
        side = "source" if ours.startswith("encoder") else "target"
        weights[ours] = _permuted(table, order, "columns")[rows[side]]
    return weights


def _names(encoder_layers: int, decoder_layers: int) -> Iterator[tuple[str, str, str]]:
    """(our name, theirs, which axis is the model dimension) of each weight but the tables."""
    for stack, layers in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        attentions = [("attention", "self_attn")]
        if stack == "decoder":
            attentions.append(("cross", "encoder_attn"))
        for n in range(layers):
            ours, theirs = f"{stack}.{n}", f"model.{stack}.layers.{n}"
            for own, name in attentions:
                for piece in ("q", "k", "v"):
                    at = (f"{ours}.{own}.body.{piece}", f"{theirs}.{name}.{piece}_proj")
                    yield f"{at[0]}.weight", f"{at[1]}.weight", "columns"
                    yield f"{at[0]}.bias", f"{at[1]}.bias", ""
                for kind in ("weight", "bias"):
                    yield (
                        f"{ours}.{own}.body.out.{kind}",
                        f"{theirs}.{name}.out_proj.{kind}",
                        "rows",
                    )
                    yield f"{ours}.{own}.norm.{kind}", f"{theirs}.{name}_layer_norm.{kind}", "rows"
            yield f"{ours}.ffn.body.inner.weight", f"{theirs}.fc1.weight", "columns"
            yield f"{ours}.ffn.body.inner.bias", f"{theirs}.fc1.bias", ""
            for kind in ("weight", "bias"):
                yield f"{ours}.ffn.body.outer.{kind}", f"{theirs}.fc2.{kind}", "rows"
                yield f"{ours}.ffn.norm.{kind}", f"{theirs}.final_layer_norm.{kind}", "rows"


def _sines_first(dim: int) -> Tensor:
    """(C,) where each of Marian's features stands among ours."""
    return torch.cat([torch.arange(0, dim, 2), torch.arange(1, dim, 2)])


def _permuted(tensor: Tensor, order: Tensor, how: str) -> Tensor:
    if how == "rows":
        return tensor[order]
    return tensor[:, order] if how == "columns" else tensor


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces_of(tokenizer))}


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


@mtplug.hookimpl
def register_exporters(register):
    register("marian", MarianExporter, MarianFormat)
