"""A Transformer of OpenNMT-py's, with its options and vocabularies, as a run.

Shapes: V vocabulary, C model size, D head size, R clipped distances.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mtplug.data.merged_words import Words
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug_opennmt.vocabulary import Model, rows_of, tokenizers_of

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu-tanh": "gelu_tanh", "silu": "swish"}
GATED = {"gelu": "geglu", "gelu-tanh": "geglu_tanh", "silu": "swiglu"}
STACKS = {"encoder": "encoder.transformer", "decoder": "decoder.transformer_layers"}
TABLE = "{}.embeddings.make_embedding.emb_luts.0.weight"
IGNORED = r".*\.(pe\.pe|rope|cos|sin)"
"""Of a state, what is computed."""
LONGEST = 4096
"""Tokens; OpenNMT-py's sinusoids, which are computed, end at 5,000."""
TABLED = 1024
"""Positions, of sinusoids that ours do not compute: they become a table."""

Values = dict[str, Any]


def imported(model: Model, config: Any) -> Imported:
    """A run.

    Raises:
        UserError: the model is one that ours cannot be, or a file is missing.
    """
    file = model.file
    _check(model)
    rows = {side: rows_of(getattr(model, side), file) for side in ("source", "target")}
    theirs = {
        name: tensor.float()
        for name, tensor in model.weights.items()
        if not re.fullmatch(IGNORED, name)
    }
    architecture = _architecture(model, theirs)
    tokenizers = tokenizers_of(model, config)
    found = _tables(model, theirs, rows, architecture)
    turned = architecture["position"]["name"] == "rope" and model.options.get("rotary_interleave")
    size = architecture["dim"] // architecture["heads"]
    for ours, name in _names(architecture):
        if f"{name}.weight" not in theirs:
            raise UserError(f"{file}: the model has no {name}.weight")
        weight = theirs.pop(f"{name}.weight")
        bias = theirs.pop(f"{name}.bias", None)
        if turned and ours.endswith(("attention.body.q", "attention.body.k")):
            weight = _halved(weight, size)
            bias = None if bias is None else _halved(bias, size)
        found[f"{ours}.weight"] = weight
        if bias is not None:
            found[f"{ours}.bias"] = bias
        elif architecture["norm_type"] == "layer" or "norm" not in ours:
            found[f"{ours}.bias"] = weight.new_zeros(len(weight))
    if architecture["position"]["name"] == "learned":
        for stack in STACKS:
            table = model.weights[f"{stack}.embeddings.make_embedding.pe.pe"]
            found[f"{stack}_position.weight"] = table[:TABLED, 0].float()
    if architecture["position"]["name"] == "shaw":
        for stack in STACKS:
            found[f"{stack}_position.table"] = _distances(theirs, stack, architecture)
        if model.options.get("relative_unscaled"):
            # Ours divide scores by √D behind the sum, so that the keys' vectors have to be larger.
            for stack in STACKS:
                found[f"{stack}_position.table"] *= size**0.5
            architecture["relative_values"] = size**-0.5
    if theirs:
        raise UserError(f"{file}: the model has {min(theirs)}, which ours does not have")
    kind = "words" if isinstance(next(iter(tokenizers.values())), Words) else "marian"
    languages = {f"{side}_lang": getattr(config, f"{side}_lang") for side in rows}
    run = {
        "task": {"name": "translation", **languages},
        "tokenizer": {"name": kind, "joint": "joint" in tokenizers},
        "architecture": architecture,
        "data": {"max_length": architecture["position"].get("max_positions", LONGEST + 1) - 1},
    }
    return Imported(run, tokenizers, found)


def _check(model: Model) -> None:
    """Raises `UserError` where a model is none of ours."""
    o = model.options
    positions = int(o.get("max_relative_positions") or 0)
    words = {o.get(f"{side}_word_vec_size") for side in ("src", "tgt")} - {None}
    sizes = {t.shape[1] for s in STACKS if (t := model.weights.get(TABLE.format(s))) is not None}
    activation = o.get("pos_ffn_activation_fn") or "relu"
    known = {*ACTIVATIONS, *(f"gated-{name}" for name in GATED)}
    rotary = o.get("rotary_dim") or 0
    for wrong, what in (
        (o.get("model_task") == "lm", "it is a language model (model_task: lm)"),
        (o.get("model_type") not in (None, "text"), f"model_type is {o.get('model_type')}, not text"),
        (o.get("encoder_type") != "transformer", f"encoder_type is {o.get('encoder_type')}; only transformer is read"),
        (o.get("decoder_type") != "transformer", f"decoder_type is {o.get('decoder_type')}; only transformer is read"),
        (o.get("self_attn_type") == "average", "self_attn_type is average"),
        (o.get("copy_attn"), "it copies from the source (copy_attn)"),
        (o.get("generator_function") == "sparsemax", "generator_function is sparsemax"),
        (activation not in known, f"pos_ffn_activation_fn {activation} is none of ours"),
        (o.get("layer_norm") not in (None, "standard", "rms"), f"layer_norm {o.get('layer_norm')} is none of ours"),
        (o.get("relative_positions_buckets"), "it has relative_positions_buckets, a table for each layer"),
        (positions < -2, f"max_relative_positions is {positions}"),
        (not positions and not o.get("position_encoding"), "it has no positions"),
        (positions and o.get("position_encoding"), "it has both position_encoding and max_relative_positions"),
        (rotary not in (0, min(sizes, default=0) // int(o.get("heads") or 1)), f"only {rotary} features of a head turn (rotary_dim)"),
        (o.get("parallel_residual"), "parallel_residual is set"),
        (o.get("num_experts"), "it has num_experts"),
        (o.get("sliding_window"), "it has a sliding_window"),
        (o.get("quant_layers"), "it is quantised (quant_layers)"),
        (o.get("lora_layers") or o.get("lora_embedding"), "it is an adapter (lora_layers): merge it with OpenNMT-py's tools/lora_weights.py"),
        (not sizes, f"it has no {TABLE.format('encoder')}"),
        (len(sizes) > 1 or len(words) > 1, "embeddings of source and target differ in size"),
    ):  # fmt: skip
        if wrong:
            raise UserError(f"{model.file}: {what}")


def _architecture(model: Model, theirs: dict[str, Tensor]) -> Values:
    """Our settings; sizes are those of the weights."""
    o, file = model.options, model.file
    layers = {
        stack: len({n.split(".")[2] for n in theirs if n.startswith(f"{name}.")})
        for stack, name in STACKS.items()
    }
    inner = theirs.get(f"{STACKS['encoder']}.0.feed_forward.w_1.weight")
    if inner is None or not layers["decoder"]:
        raise UserError(f"{file} has no weights of a Transformer")
    tables = [theirs[TABLE.format(stack)] for stack in STACKS]
    output = theirs.get("generator.weight", tables[1])
    tied = "none"
    if o.get("share_decoder_embeddings") and torch.equal(output, tables[1]):
        shared = o.get("share_embeddings") and model.source == model.target
        tied = "all" if shared and torch.equal(*tables) else "decoder"
    positions = int(o.get("max_relative_positions") or 0)
    absolute = bool(o.get("position_encoding"))
    concat = o.get("position_encoding_type") == "SinusoidalConcat"
    names = {0: "learned" if concat else "sinusoidal", -1: "rope", -2: "alibi"}
    position: Values = {"name": names.get(positions, "shaw")}
    if position["name"] == "shaw":
        position["max_distance"] = positions
    elif position["name"] == "learned":
        position["max_positions"] = TABLED
    elif position["name"] == "rope":
        position["base"] = float(o.get("rotary_theta") or 10000)
    heads = int(o["heads"])
    # OpenNMT-py's silu has a gate; the weights tell.
    gated = f"{STACKS['encoder']}.0.feed_forward.w_3.weight" in theirs
    activation = (o.get("pos_ffn_activation_fn") or "relu").removeprefix("gated-")
    shared_heads = int(o.get("num_kv") or 0) or (1 if o.get("multiquery") else 0)
    return {
        "name": "opennmt", "dim": tables[0].shape[1], "ffn_dim": len(inner), "heads": heads,
        "kv_heads": 0 if shared_heads == heads else shared_heads,
        "encoder_layers": layers["encoder"], "decoder_layers": layers["decoder"], "norm": "pre",
        "norm_type": "rms" if o.get("layer_norm") == "rms" else "layer",
        "norm_epsilon": float(o.get("norm_eps") or 1e-6),
        "activation": (GATED if gated else ACTIVATIONS)[activation],
        "dropout": _first(o.get("dropout")), "attention_dropout": _first(o.get("attention_dropout")),
        "activation_dropout": _first(o.get("dropout")),
        "tie_embeddings": tied, "scale_embeddings": absolute, "relative_values": float(positions > 0),
        "position": position,
    }  # fmt: skip


def _first(dropout: Any) -> float:
    """Of a schedule, the value that training began with."""
    return float((dropout[0] if isinstance(dropout, list) else dropout) or 0)


def _tables(
    model: Model, theirs: dict[str, Tensor], rows: dict[str, list[int]], architecture: Values
) -> dict[str, Tensor]:
    """Embeddings and output, in the order of our ids; they are taken out of `theirs`."""
    file, target = model.file, rows["target"]
    tables = {side: theirs.pop(TABLE.format(s)) for side, s in zip(rows, STACKS, strict=True)}
    if "generator.weight" in theirs:
        tables["generator"] = theirs.pop("generator.weight")
    elif model.options.get("share_decoder_embeddings"):
        tables["generator"] = tables["target"]
    else:
        raise UserError(f"{file}: the model has no generator.weight")
    if len(tables["source"]) == len(model.source) - 1 == rows["source"][1]:  # without `</s>`
        tables["source"] = torch.nn.functional.pad(tables["source"], (0, 0, 0, 1))
    for side, table in tables.items():
        wanted = len(model.source if side == "source" else model.target)
        if len(table) != wanted:
            raise UserError(
                f"{file}: the table of {side} has {len(table)} rows, its vocabulary {wanted}"
            )
    if model.start not in model.target:
        raise UserError(
            f"{file}: its vocabulary has no {model.start!r}, which decoding begins with"
        )
    tied = architecture["tie_embeddings"]
    found = {"encoder_embedding.weight": tables["source"][rows["source"]]}
    if tied != "all":
        found["decoder_embedding.weight"] = tables["target"][target]
    if tied == "none":
        found["output.weight"] = tables["generator"][target]
    begin = tables["target"][model.target.index(model.start)]
    if not architecture["scale_embeddings"]:
        begin = begin / architecture["dim"] ** 0.5
    found["start_embedding"] = begin
    bias = theirs.pop("generator.bias", None)
    found["output_bias"] = begin.new_zeros(len(target)) if bias is None else bias[target]
    return found


def _names(architecture: Values) -> Iterator[tuple[str, str]]:
    """(our name, theirs) of each module with weights but tables."""
    gated = architecture["activation"] in GATED.values()
    for stack, theirs in STACKS.items():
        attentions = {
            "attention": ("self_attn", "layer_norm" if stack == "encoder" else "layer_norm_1")
        }
        if stack == "decoder":
            attentions["cross"] = ("context_attn", "layer_norm_2")
        for n in range(architecture[f"{stack}_layers"]):
            at, there = f"{stack}.{n}", f"{theirs}.{n}"
            for own, (name, norm) in attentions.items():
                for piece, linear in (
                    ("q", "linear_query"), ("k", "linear_keys"), ("v", "linear_values"), ("out", "final_linear"),
                ):  # fmt: skip
                    yield f"{at}.{own}.body.{piece}", f"{there}.{name}.{linear}"
                yield f"{at}.{own}.norm", f"{there}.{norm}"
            # The first of their maps is the one that the activation is of.
            inner = {"gate": "w_1", "inner": "w_3"} if gated else {"inner": "w_1"}
            for own, name in {**inner, "outer": "w_2"}.items():
                yield f"{at}.ffn.body.{own}", f"{there}.feed_forward.{name}"
            yield f"{at}.ffn.norm", f"{there}.feed_forward.layer_norm"
        yield f"{stack}_norm", f"{stack}.layer_norm"


def _halved(x: Tensor, size: int) -> Tensor:
    """Rows of heads with pairs (0, 1), (2, 3) … that turn as rows where feature f turns with f + D/2, as ours."""
    heads = x.unflatten(0, (-1, size))
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], 1).flatten(0, 1)


def _distances(theirs: dict[str, Tensor], stack: str, architecture: Values) -> Tensor:
    """(layers, 1, R, D). They count key minus query, we query minus key."""
    layers = range(architecture[f"{stack}_layers"])
    name = f"{STACKS[stack]}.{{}}.self_attn.relative_positions_embeddings.weight"
    return torch.stack([theirs.pop(name.format(n)).flip(0)[None] for n in layers])
