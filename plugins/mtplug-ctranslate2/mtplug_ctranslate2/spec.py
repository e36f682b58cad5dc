"""A Transformer of mtplug as a specification of CTranslate2.

What CTranslate2 computes is stated in its `ctranslate2/specs`; what it reads of each layer is set here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ctranslate2.specs import TransformerSpec
from ctranslate2.specs.common_spec import Activation
from mtplug_kernels.positions import ClippedBias, QueryTable
from torch import Tensor, nn

from mtplug.architectures import transformer
from mtplug.data.tokenizers import EOS, PAD
from mtplug.exporting.marian_model import Marian
from mtplug.nn.attention import MultiHeadAttention
from mtplug.nn.positions import PositionEncoding
from mtplug.nn.relative import T5Bias
from mtplug.peft.base import Change

ACTIVATIONS = {
    "relu": Activation.RELU, "gelu": Activation.GELU, "swish": Activation.SWISH,
    "gelu_tanh": Activation.GELUTanh, "geglu": Activation.GELU, "geglu_tanh": Activation.GELUTanh,
    "swiglu": Activation.SWISH,
}  # fmt: skip
KNOWN = (
    transformer.Transformer, transformer.EncoderLayer, transformer.DecoderLayer,
    transformer.Sublayer, transformer.FeedForward, MultiHeadAttention,
    nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.ModuleList, nn.Identity,
)  # fmt: skip
"""The modules that are translated; any other means a model that computes something else."""


def why_not(model: nn.Module) -> str:
    """What of a model CTranslate2 does not have; empty if it has all.

    An architecture of a plugin that is a Transformer but for what is looked at here says so with an attribute of the class,
    or of the model, `ctranslate2 = True`: `start_embedding` (decoding begins with it), `output_bias` (of the logits), `source_end = False` (the
    encoder does not see `</s>`), `start` (the token that decoding begins with), `scale_embeddings` and `relative_values`
    in its settings.
    """
    # Not inherited: a class that is derived may compute something else.
    able = vars(model).get("ctranslate2", vars(type(model)).get("ctranslate2"))
    if type(model) not in (transformer.Transformer, Marian) and not able:
        return f"CTranslate2 gets architectures transformer and marian, not {type(model).__name__}"
    for name, module in model.named_modules():
        if isinstance(module, Change):
            return f"{name} belongs to an adapter; first mtplug-peft merge RUN --output FOLDER"
        inside = name.startswith(("encoder_position", "decoder_position"))
        if name and not inside and type(module) not in KNOWN:
            kind = type(module).__name__
            if kind in {known.__name__ for known in KNOWN}:  # a library's `Linear` is another
                kind = f"{type(module).__module__}.{kind}"
            return f"{name} is a {kind}, which CTranslate2 does not have"
    config: Any = model.config
    if config.activation not in ACTIVATIONS:
        return f"CTranslate2 has no activation {config.activation}; use {', '.join(ACTIVATIONS)}"
    if config.kv_heads not in (0, config.heads):
        return "CTranslate2 has no shared heads of keys in an encoder-decoder; use architecture.kv_heads=0"
    if config.head_dim not in (0, config.dim // config.heads):
        return "CTranslate2's heads share out the model size; use architecture.head_dim=0"
    for position in (model.encoder_position, model.decoder_position):
        if _kind(position) is None:
            return (
                f"CTranslate2 has no {config.position.name} positions in an encoder-decoder; use "
                "architecture.position.name=sinusoidal, learned, shaw or t5_bias"
            )
    return ""


def _kind(position: PositionEncoding) -> str | None:
    """absolute, shaw, t5 or none; None for what CTranslate2 cannot do."""
    schemes = position.schemes(0)
    added = position.embed(0, 1)
    if not schemes:
        return "none" if added is None else "absolute"
    if len(schemes) > 1 or added is not None or position.score_scale is not None:
        return None
    if isinstance(schemes[0], QueryTable) and len(schemes[0].table) == 1:  # for all heads
        return "shaw"
    if isinstance(schemes[0], ClippedBias) and type(position) is T5Bias:
        return "t5"
    return None


@torch.no_grad()
def build(model: transformer.Transformer, positions: int) -> TransformerSpec:
    """The specification of a model that `why_not` has nothing against.

    Args:
        model: on any device.
        positions: rows of the table of absolute positions, where there is one.
    """
    config = model.config
    kind = _kind(model.encoder_position)
    values: float = getattr(config, "relative_values", 0.0)
    spec = TransformerSpec.from_config(
        (len(model.encoder), len(model.decoder)),
        config.heads,
        pre_norm=config.norm == "pre",
        activation=ACTIVATIONS[config.activation],
        ffn_glu=model.encoder[0].ffn.body.gated,
        rms_norm=config.norm_type == "rms",
        with_relative_position=kind == "shaw",
        relative_attention_bias=kind == "t5",
        alignment_layer=max(len(model.decoder) - 2, 0),  # as `Transformer.cross_attention`
        alignment_heads=0,  # the mean of all
    )
    spec.encoder.embeddings[0].weight = _array(model.encoder_embedding.weight)
    spec.decoder.embeddings.weight = _array(model.decoder_embedding.weight)
    spec.decoder.projection.weight = _array(model.output.weight)
    if (bias := getattr(model, "output_bias", None)) is not None:
        spec.decoder.projection.bias = _array(bias)
    scaled: bool = getattr(config, "scale_embeddings", True)
    spec.encoder.scale_embeddings = spec.decoder.scale_embeddings = scaled
    if (start := getattr(model, "start_embedding", None)) is not None:
        # The model multiplies it by √C in either case, CTranslate2 only where embeddings are.
        factor = 1.0 if scaled else config.dim**0.5
        spec.decoder.embeddings.weight[PAD] = factor * _array(start)
    for side, layers, position in (
        (spec.encoder, model.encoder, model.encoder_position),
        (spec.decoder, model.decoder, model.decoder_position),
    ):
        if kind in ("absolute", "none"):
            side.position_encodings.encodings = _table(position, positions, config.dim)
        for number, (to, layer) in enumerate(zip(side.layer, layers, strict=True)):
            _self_attention(to.self_attention, layer.attention)
            _relative(to.self_attention, position, number, kind, values)
            if hasattr(layer, "cross"):
                _cross_attention(to.attention, layer.cross)
            _norm(to.ffn.layer_norm, layer.ffn.norm)
            if layer.ffn.body.gated:
                _linear(to.ffn.linear_0, layer.ffn.body.gate)
                _linear(to.ffn.linear_0_noact, layer.ffn.body.inner)
            else:
                _linear(to.ffn.linear_0, layer.ffn.body.inner)
            _linear(to.ffn.linear_1, layer.ffn.body.outer)
    if config.norm == "pre":
        _norm(spec.encoder.layer_norm, model.encoder_norm)
        _norm(spec.decoder.layer_norm, model.decoder_norm)
    return spec


def start_of(model: nn.Module) -> int:
    """The id that decoding begins with: an embedding of its own stands at the padding's, which is never given otherwise."""
    if hasattr(model, "start_embedding"):
        return PAD
    config: Any = model.config
    return int(getattr(config, "start", EOS))


def _table(position: PositionEncoding, rows: int, dim: int) -> np.ndarray:
    most = getattr(position, "weight", None)  # a learnt table ends somewhere
    added = position.embed(0, rows if most is None else min(rows, len(most)))
    return np.zeros((rows, dim), np.float32) if added is None else _array(added)


def _relative(
    to: Any, position: PositionEncoding, layer: int, kind: str | None, values: float
) -> None:
    if kind == "shaw":
        # CTranslate2 counts key minus query, we count query minus key.
        to.relative_position_keys = _array(position.schemes(layer)[0].table[0].flip(0))
        to.relative_position_values = values * to.relative_position_keys
    elif kind == "t5":
        to.relative_attention_bias = _array(position.weight)  # type: ignore[arg-type]
        to.relative_attention_max_distance = np.dtype("int32").type(position.max_distance)


def _self_attention(to: Any, layer: Any) -> None:
    _norm(to.layer_norm, layer.norm)
    _linear(to.linear[0], layer.body.q, layer.body.k, layer.body.v)
    _linear(to.linear[1], layer.body.out)


def _cross_attention(to: Any, layer: Any) -> None:
    _norm(to.layer_norm, layer.norm)
    _linear(to.linear[0], layer.body.q)
    _linear(to.linear[1], layer.body.k, layer.body.v)
    _linear(to.linear[2], layer.body.out)


def _linear(to: Any, *linears: nn.Linear) -> None:
    """One map, or several of the same input one below the other."""
    to.weight = _array(torch.cat([linear.weight for linear in linears]))
    to.bias = _array(torch.cat([linear.bias for linear in linears]))


def _norm(to: Any, norm: nn.LayerNorm | nn.RMSNorm) -> None:
    to.gamma = _array(norm.weight)
    if isinstance(norm, nn.LayerNorm):
        to.beta = _array(norm.bias)


def _array(tensor: Tensor) -> np.ndarray:
    # A copy, since CTranslate2 quantizes in place.
    return tensor.detach().float().cpu().contiguous().numpy().copy()
