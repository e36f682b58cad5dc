"""Format `sockeye`: a model folder of Sockeye 3, read.

Shapes: V vocabulary, C model size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mtplug.data.merged_words import SPECIAL, Words
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.marian_model import subwords_of, tokenizer_of
from mtplug.files import read_pickled

PAD, UNK, BOS, EOS = range(4)  # in every vocabulary of Sockeye
SYMBOLS = ["<pad>", "<unk>", "<s>", "</s>"]
OURS = (PAD, EOS, UNK)
"""What stands at our ids 0, 1, 2; `<s>`, which ours lack, comes last."""
STACKS = ("encoder", "decoder")
SIDES = {"source": "src", "target": "trg"}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish1": "swish"}
GATED = {"gelu": "geglu", "swish1": "swiglu"}
NORMS = {("n", "dr"): "pre", ("n", "r"): "pre", ("", "drn"): "post", ("", "rn"): "post"}
"""By transformer_preprocess and transformer_postprocess."""
UNUSED = ("length_ratio.", "traced_")
"""Of a state, what takes no part in translating as Sockeye does by default."""

Values = dict[str, Any]


@dataclass
class SockeyeFormat:
    """A Transformer that Sockeye 3 trained; it is only read. `source` is its folder, or a file of parameters there."""

    source_lang: str = ""
    """the run's task.source_lang; Sockeye does not record it"""
    target_lang: str = ""
    """the run's task.target_lang; decides how BLEU tokenises"""
    source_subwords: str = ""
    """what cut the source into subwords: a .model of SentencePiece, or codes of subword-nmt or fastBPE; empty: text
    is taken and given as the vocabulary has it, cut already"""
    target_subwords: str = ""
    """the same of the target; empty: as `source_subwords`"""


class SockeyeImporter:
    def __init__(self, config: SockeyeFormat):
        self.config = config

    def read(self, source: Path) -> Imported:
        """A folder with config, params.best (or a file params.NUMBER), vocab.src.0.json and vocab.trg.0.json.

        Raises:
            UserError: a file is missing, or the model has something that ours does not.
        """
        file = source if source.is_file() else source / "params.best"
        folder = file.parent
        config = _config(folder / "config")
        settings = _architecture(config, folder / "config")
        for side in SIDES:
            if not getattr(self.config, f"{side}_lang"):
                raise UserError(
                    f"{side}_lang is missing: source_lang=XX target_lang=YY say the languages, which Sockeye does not record"
                )
        if not file.is_file():
            raise UserError(f"{file} is missing; give a file params.NUMBER instead of the folder")
        state = read_pickled(file)
        vocabularies = {s: _vocabulary(folder / f"vocab.{t}.0.json") for s, t in SIDES.items()}
        theirs = {k: v.float() for k, v in state.items() if not k.startswith(UNUSED)}
        found: dict[str, Tensor] = {}
        for ours, name in _names(settings):
            if name not in theirs:
                raise UserError(f"{file}: the model has no {name}, which config promises")
            found[ours] = theirs.pop(name)
        _take_attentions(found, theirs, settings, file)
        limits = _take_positions(found, theirs, settings, config)
        self._tables(found, theirs, vocabularies, settings, file)
        if theirs:
            raise UserError(f"{file}: the model has {min(theirs)}, which ours do not have")
        settings["start"] = len(vocabularies["target"]) - 1
        tokenizers = self._tokenizers(vocabularies)
        kind = "words" if isinstance(next(iter(tokenizers.values())), Words) else "marian"
        languages = {f"{side}_lang": getattr(self.config, f"{side}_lang") for side in SIDES}
        run = {
            "task": {"name": "translation", **languages},
            "tokenizer": {"name": kind, "joint": False},
            "architecture": settings,
            "data": {"max_length": limits - 1},
        }
        return Imported(run, tokenizers, found)

    def _tables(
        self, found: dict[str, Tensor], theirs: dict[str, Tensor], vocabularies: dict[str, list[str]],
        settings: Values, file: Path,
    ) -> None:  # fmt: skip
        """Move embeddings, output and its bias, in the order of our ids, from `theirs` to `found`."""
        tied = settings["tie_embeddings"]
        for ours, name, side in (
            ("encoder_embedding.weight", "embedding_source.embedding.weight", "source"),
            ("decoder_embedding.weight", "embedding_target.embedding.weight", "target"),
            ("output.weight", "output_layer.weight", "target"),
            ("output_bias", "output_layer.bias", "target"),
        ):
            table, count = theirs.pop(name, None), len(vocabularies[side])
            if table is None:
                raise UserError(f"{file}: the model has no {name}")
            if len(table) != count:
                raise UserError(
                    f"{file}: the model has {len(table)} symbols of the {side}, vocab.{SIDES[side]}.0.json {count}: it is "
                    "another model's"
                )
            if (ours, tied) not in {
                ("decoder_embedding.weight", "all"), ("output.weight", "all"), ("output.weight", "decoder"),
            }:  # fmt: skip
                found[ours] = table[[*OURS, *range(EOS + 1, count), BOS]]

    def _tokenizers(self, vocabularies: dict[str, list[str]]) -> dict[str, Tokenizer]:
        given = subwords_of(self.config)
        return {
            side: tokenizer_of([*SPECIAL, *symbols[EOS + 1 :], "<s>"], given[side])
            for side, symbols in vocabularies.items()
        }


class _Loader(yaml.SafeLoader):
    """Reads an object of Sockeye's as its values, whatever its class."""


_Loader.add_multi_constructor(
    "!", lambda loader, _, node: loader.construct_mapping(node, deep=True)
)
_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: loader.construct_sequence(node, deep=True),  # type: ignore[arg-type]
)


def _config(file: Path) -> Values:
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: no configuration of Sockeye's: {str(error).splitlines()[0]}"
        ) from None
    parts = ("config_encoder", "config_decoder", "config_data")
    if not isinstance(config, dict) or not all(isinstance(config.get(p), dict) for p in parts):
        raise UserError(
            f"{file}: it lacks {', '.join(parts)}, so it is no configuration of Sockeye 3"
        )
    return config


def _vocabulary(file: Path) -> list[str]:
    """The symbols of a file by their ids."""
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
        symbols = sorted(ids, key=ids.__getitem__)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: no vocabulary of Sockeye's: {error}") from None
    if symbols[: len(SYMBOLS)] != SYMBOLS or sorted(ids.values()) != list(range(len(ids))):
        raise UserError(
            f"{file}: no vocabulary of Sockeye's: it does not begin with {', '.join(SYMBOLS)}"
        )
    return symbols


def _architecture(config: Values, file: Path) -> Values:
    """Our settings of a Transformer.

    Raises:
        UserError: it is one that ours cannot be.
    """
    encoder, decoder = config["config_encoder"], config["config_decoder"]
    data, kind = config["config_data"], decoder.get("decoder_type", "transformer")
    for wrong, what in (
        (kind != "transformer", f"decoder_type is {kind}, which ours has not"),
        (data.get("num_source_factors", 1) > 1, "the model has source factors, which ours has not"),
        (data.get("num_target_factors", 1) > 1, "the model has target factors, which ours has not"),
        (
            config.get("lhuc") or encoder.get("use_lhuc") or decoder.get("use_lhuc"),
            "LHUC is on, which ours has not",
        ),
        (
            config.get("neural_vocab_selection"),
            "the model selects its vocabulary (neural_vocab_selection)",
        ),
        (decoder.get("block_prepended_cross_attention"), "block_prepended_cross_attention is set"),
        (
            config.get("dtype") == "int8",
            "the model is quantised; give the one before sockeye-quantize",
        ),
    ):
        if wrong:
            raise UserError(f"{file}: {what}")
    for key in (
        "model_size", "feed_forward_num_hidden", "attention_heads", "act_type", "use_glu", "preprocess_sequence",
        "postprocess_sequence", "positional_embedding_type",
    ):  # fmt: skip
        if encoder.get(key) != decoder.get(key):
            raise UserError(
                f"{file}: encoder and decoder differ in {key}: {encoder.get(key)} and {decoder.get(key)}"
            )
    sequences = encoder["preprocess_sequence"] or "", encoder["postprocess_sequence"] or ""
    if sequences not in NORMS:
        raise UserError(
            f"{file}: preprocess_sequence '{sequences[0]}' with postprocess_sequence '{sequences[1]}' is not read; only "
            "n with dr, and none with drn"
        )
    known = GATED if encoder.get("use_glu") else ACTIVATIONS
    if (activation := encoder["act_type"]) not in known:
        raise UserError(
            f"{file}: act_type {activation}{' with use_glu' * (known is GATED)} is none of ours"
        )
    positions = encoder["positional_embedding_type"]
    if positions not in ("fixed", "learned"):
        raise UserError(
            f"{file}: positional_embedding_type is {positions}, neither fixed nor learned"
        )
    tying = str(config.get("weight_tying_type", "src_trg_softmax"))
    ties = {"src_trg_softmax": "all", "trg_softmax": "decoder"}
    return {
        "name": "sockeye", "dim": encoder["model_size"], "ffn_dim": encoder["feed_forward_num_hidden"],
        "heads": encoder["attention_heads"],
        "encoder_layers": encoder["num_layers"], "decoder_layers": decoder["num_layers"],
        "norm": NORMS[sequences], "activation": known[activation], "tie_embeddings": ties.get(tying, "none"),
        "dropout": float(encoder.get("dropout_prepost", 0)),
        "attention_dropout": float(encoder.get("dropout_attention", 0)),
        "activation_dropout": float(encoder.get("dropout_act", 0)),
        "position": {"name": "sockeye_sinusoidal" if positions == "fixed" else "learned"},
    }  # fmt: skip


ATTENTIONS = {
    "encoder": {"attention": ("self_attention", "self_attention")},
    "decoder": {"attention": ("autoregr_layer", "autoregr_layer"), "cross": ("enc_attention", "enc_attention")},
}  # fmt: skip
"""Of each stack our sublayers, with Sockeye's names of their bodies and of what stands before and after them."""


def _names(settings: Values) -> Iterator[tuple[str, str]]:
    """(our name, Sockeye's) of each weight but those of attention, tables and positions."""
    at = settings["norm"]
    inner = (
        {"gate": "ff1", "inner": "linear"}
        if settings["activation"] in GATED.values()
        else {"inner": "ff1"}
    )
    pairs = []
    for stack in STACKS:
        for n in range(settings[f"{stack}_layers"]):
            ours, theirs = f"{stack}.{n}", f"{stack}.layers.{n}"
            for sublayer, (_, block) in ATTENTIONS[stack].items():
                pairs.append((f"{ours}.{sublayer}.norm", f"{theirs}.{at}_{block}.layer_norm"))
            pairs.append((f"{ours}.ffn.norm", f"{theirs}.{at}_ff.layer_norm"))
            pairs += [
                (f"{ours}.ffn.body.{o}", f"{theirs}.ff.{t}")
                for o, t in {**inner, "outer": "ff2"}.items()
            ]
        if at == "pre":
            pairs.append((f"{stack}_norm", f"{stack}.final_process.layer_norm"))
    for ours, theirs in pairs:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}"


def _take_attentions(
    found: dict[str, Tensor], theirs: dict[str, Tensor], settings: Values, file: Path
) -> None:
    """Queries, keys and values apart. Sockeye saves keys and values of each head in turn, and has no biases."""
    dim, heads = settings["dim"], settings["heads"]
    for stack in STACKS:
        for n in range(settings[f"{stack}_layers"]):
            for sublayer, (body, _) in ATTENTIONS[stack].items():
                at = f"{stack}.layers.{n}.{body}"
                needed = ("ff_q", "ff_kv", "ff_out") if sublayer == "cross" else ("ff_in", "ff_out")
                parts = [theirs.pop(f"{at}.{name}.weight", None) for name in needed]
                if any(part is None for part in parts):
                    raise UserError(f"{file}: the model has no {at}, which config promises")
                q, kv = parts[:2] if sublayer == "cross" else parts[0].split([dim, 2 * dim])  # type: ignore[union-attr]
                k, v = kv.reshape(heads, 2, dim // heads, -1).transpose(0, 1).reshape(2, dim, -1)  # type: ignore[union-attr]
                for piece, weight in {"q": q, "k": k, "v": v, "out": parts[-1]}.items():
                    found[f"{stack}.{n}.{sublayer}.body.{piece}.weight"] = weight.contiguous()  # type: ignore[union-attr]
                    found[f"{stack}.{n}.{sublayer}.body.{piece}.bias"] = torch.zeros(dim)


def _take_positions(
    found: dict[str, Tensor], theirs: dict[str, Tensor], settings: Values, config: Values
) -> int:
    """Move what was learnt to `found`; how many positions there are on the shorter side."""
    sides = {"encoder": "source", "decoder": "target"}
    limits = [
        int(config[f"config_{stack}"][f"max_seq_len_{side}"]) for stack, side in sides.items()
    ]
    for stack in STACKS:
        table = theirs.pop(f"{stack}.pos_embedding.weight", None)
        if settings["position"]["name"] == "learned" and table is not None:
            found[f"{stack}_position.weight"] = table[: min(limits)]
    if settings["position"]["name"] == "learned":
        settings["position"]["max_positions"] = min(limits)
    return min(limits)
