"""Format `nllb`: folders of transformers' M2M100ForConditionalGeneration and MBartForConditionalGeneration, read and written.

Shapes: V vocabulary, C model size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from mtplug.data.scripts import primary
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.fairseq import BOS, FIRST, OURS, UNK, layer_names
from mtplug.exporting.hugging_face import LikeExporter, read_settings, read_weights, taken
from mtplug_nllb.model import NllbTransformer
from mtplug_nllb.tokenizer import NllbTokenizer

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SUBWORDS = "sentencepiece.bpe.model"
SHARED = "model.shared.weight"
TABLES = (
    SHARED,
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
STACKS = ("encoder", "decoder")
M2M_LANGUAGES = """af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy
id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so
sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"""
"""Of M2M-100, in the order of their ids, which not every folder tells."""


@dataclass
class NllbFormat:
    """A folder of NLLB-200, M2M-100 or mBART-50 for `transformers`. Reading wants the codes, writing `like`."""

    source_code: str = ""
    """the model's code of the source language, such as eng_Latn, __en__ or en_XX: the first token of each source"""
    target_code: str = ""
    """its code of the target language, which the decoder is told; empty: the decoder is told none"""
    source_lang: str = ""
    """the run's task.source_lang; empty: the letters that `source_code` begins with"""
    target_lang: str = ""
    """the run's task.target_lang, likewise"""
    like: str = ""
    """for writing: the folder that the model was read from, whose settings and tokenizer stay as they are"""


class Nllb(LikeExporter):
    name, architecture = "nllb", NllbTransformer
    kept = ("dim", "ffn_dim", "heads", "encoder_layers", "decoder_layers", "norm_embeddings")

    def settings(self, config: dict[str, Any], where: Path) -> dict[str, Any]:
        return _architecture(config, where)[0]

    def tensors(
        self,
        weights: dict[str, Tensor],
        settings: dict[str, Any],
        config: dict[str, Any],
        like: Path,
    ) -> dict[str, Tensor]:
        tensors = {theirs: weights[ours] for ours, theirs in _names(settings)}
        table = weights["decoder_embedding.weight"]
        order = torch.empty(len(table), dtype=torch.long)
        order[_rows(len(table))] = torch.arange(len(table))
        tensors[SHARED] = table[order]
        if settings["position"]["name"] == "learned":
            for stack in STACKS:
                own = weights[f"{stack}_position.weight"]
                unused = own.new_zeros(FIRST, own.shape[1])
                tensors[f"model.{stack}.embed_positions.weight"] = torch.cat([unused, own])
            tensors["final_logits_bias"] = torch.zeros(1, len(table))
        return tensors

    def read(self, source: Path) -> Imported:
        """A folder with config.json, the weights, sentencepiece.bpe.model and, as the model has them, tokenizer.json,
        vocab.json, special_tokens_map.json and tokenizer_config.json.

        Raises:
            UserError: a file is missing, or the model has something that ours does not.
        """
        config = read_settings(source / "config.json")
        settings, limit = _architecture(config, source)
        pieces, subwords = _pieces(source, config["vocab_size"])
        rows = _rows(len(pieces))
        written = [pieces[i] for i in rows]
        codes = {"source": self.config.source_code, "target": self.config.target_code}
        tokenizers: dict[str, Tokenizer] = {
            side: NllbTokenizer(subwords, written, code=code, first=side == "source")
            for side, code in codes.items()
        }
        if not codes["source"]:
            raise UserError(
                f"source_code is missing: the code of the language to translate from, one of {_some(tokenizers)}"
            )
        theirs = read_weights(source)
        bias = theirs.pop("final_logits_bias", None)
        if bias is not None and bias.any():
            raise UserError(f"{source}: its logits have a bias, which ours do not have")
        found = {ours: taken(theirs, name, source) for ours, name in _names(settings)}
        tables = [theirs.pop(name) for name in TABLES if name in theirs]
        if not tables or any(not torch.equal(t, tables[0]) for t in tables):
            raise UserError(f"{source}: embeddings and output are not one table, as ours are")
        found["encoder_embedding.weight"] = tables[0][rows]
        for stack in STACKS:
            positions = theirs.pop(f"model.{stack}.embed_positions.weight", None)
            if settings["position"]["name"] == "learned":
                if positions is None:
                    raise UserError(f"{source}: its weights have no positions of the {stack}")
                found[f"{stack}_position.weight"] = positions[FIRST:]
        if left := [name for name in theirs if "embed_positions" not in name]:
            raise UserError(f"{source}: the model has {min(left)}, which ours do not have")
        languages = {
            f"{side}_lang": getattr(self.config, f"{side}_lang") or primary(code)
            for side, code in codes.items()
        }
        run = {
            "task": {"name": "translation", **languages},
            "tokenizer": {
                "name": "nllb", "vocab_size": len(pieces), **{f"{s}_code": c for s, c in codes.items()}
            },
            "architecture": settings,
            "data": {"max_length": limit // 2},
        }  # fmt: skip
        return Imported(run, tokenizers, found)


def _architecture(config: dict[str, Any], where: Path) -> tuple[dict[str, Any], int]:
    """Our settings of a Transformer, and how many positions it was made for.

    Raises:
        UserError: it is one that ours cannot be.
    """
    kind = config.get("model_type")
    if kind not in ("m2m_100", "mbart"):
        raise UserError(f"{where}: model_type is {kind}, neither m2m_100 nor mbart")
    for key in ("attention_heads", "ffn_dim"):
        if config[f"encoder_{key}"] != config[f"decoder_{key}"]:
            raise UserError(f"{where}: encoder and decoder differ in {key}")
    activation = config.get("activation_function", "relu")
    for wrong, what in (
        (activation not in ACTIVATIONS, f"activation {activation} is none of ours"),
        (not config.get("scale_embedding", True), "scale_embedding is false; ours are scaled"),
        (not config.get("tie_word_embeddings", True), "its output has a table of its own"),
    ):
        if wrong:
            raise UserError(f"{where}: {what}")
    limit = int(config.get("max_position_embeddings", 1024))
    position: dict[str, Any] = {"name": "fairseq_sinusoidal"}
    if kind == "mbart":
        position = {"name": "learned", "max_positions": limit}
    return {
        "name": "nllb", "dim": config["d_model"], "ffn_dim": config["encoder_ffn_dim"],
        "heads": config["encoder_attention_heads"],
        "encoder_layers": config["encoder_layers"], "decoder_layers": config["decoder_layers"],
        "norm": "pre", "activation": ACTIVATIONS[activation], "tie_embeddings": "all",
        "dropout": float(config.get("dropout", 0.1)),
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
        "activation_dropout": float(config.get("activation_dropout", 0.0)),
        "norm_embeddings": kind == "mbart", "position": position,
    }, limit  # fmt: skip


def _names(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """(our name, theirs) of each weight but the table and positions."""
    found = [(ours, f"model.{theirs}") for ours, theirs in layer_names(settings)]
    if settings["norm_embeddings"]:
        found += [
            (f"{stack}_embedding_norm.{kind}", f"model.{stack}.layernorm_embedding.{kind}")
            for stack in STACKS
            for kind in ("weight", "bias")
        ]
    return found


def _rows(count: int) -> list[int]:
    """Their id of each of ours: padding, `</s>` and unknown come first, `<s>` last."""
    return [*OURS, *range(UNK + 1, count), BOS]


def _pieces(folder: Path, count: int) -> tuple[list[str], bytes]:
    """The written form of each of their `count` ids, and the SentencePiece model.

    M2M-100 has its pieces in vocab.json, and behind them its codes; NLLB-200 and mBART-50 have those of SentencePiece in its
    order, then their codes and `<mask>`. A tokenizer.json tells each symbol's id.
    """
    file = folder / SUBWORDS
    try:
        subwords = file.read_bytes()
        model = sentencepiece.SentencePieceProcessor(model_proto=subwords)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file}: no SentencePiece model: {error}") from None
    codes = _codes(folder)
    fast = read_settings(folder / "tokenizer.json", {}).get("added_tokens", [])
    if (folder / "vocab.json").is_file():
        codes = codes or [f"__{language}__" for language in M2M_LANGUAGES.split()]
        ids = dict(read_settings(folder / "vocab.json"))
        ids |= {code: len(ids) + n for n, code in enumerate(codes)}
    else:
        own = [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
        listed = [*SPECIAL, *own, *codes, "<mask>"]
        ids = {piece: i for i, piece in reversed(list(enumerate(listed)))}
    ids |= {token["content"]: token["id"] for token in fast}
    if [ids.get(symbol) for symbol in SPECIAL] != list(range(len(SPECIAL))):
        raise UserError(f"{folder}: its first symbols are not {' '.join(SPECIAL)}")
    pieces = [f"<unused-{i}>" for i in range(count)]
    for piece, i in ids.items():
        if i < count:
            pieces[i] = piece
        elif piece in codes:
            raise UserError(f"{folder}: {piece} has id {i}, and the model {count} of them")
    return pieces, subwords


def _codes(folder: Path) -> list[str]:
    """The language codes that files name, in the order of their ids."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = read_settings(folder / name, {})
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(listed := settings.get(key), list) and listed:
                made = [one if isinstance(one, str) else one["content"] for one in listed]
                return [code for code in made if code != "<mask>"]
    return []


def _some(tokenizers: dict[str, Tokenizer]) -> str:
    codes = tokenizers["source"].languages
    more = f" and {len(codes) - 20} more" if len(codes) > 20 else ""
    return ", ".join(codes[:20]) + more
