"""Format `eole`: folders of models that Eole trained, read. Names and settings become those of OpenNMT-py, its predecessor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.hugging_face import read_settings
from mtplug.files import read_tensors
from mtplug_opennmt.reading import imported
from mtplug_opennmt.vocabulary import Model, with_end

NAMES = (
    (r"^src_emb\.embeddings\.", "encoder.embeddings.make_embedding.emb_luts.0."),
    (r"^tgt_emb\.embeddings\.", "decoder.embeddings.make_embedding.emb_luts.0."),
    (r"^src_emb\.pe\.", "encoder.embeddings.make_embedding.pe."),
    (r"^tgt_emb\.pe\.", "decoder.embeddings.make_embedding.pe."),
    (r"^encoder\.transformer_layers\.", "encoder.transformer."),
    (r"^(encoder\..*)\.input_layernorm\.", r"\1.layer_norm."),
    (r"^(decoder\..*)\.input_layernorm\.", r"\1.layer_norm_1."),
    (r"\.precontext_layernorm\.", ".layer_norm_2."),
    (r"\.post_attention_layernorm\.", ".feed_forward.layer_norm."),
    (r"\.mlp\.gate_up_proj\.", ".feed_forward.w_1."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w_2."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w_3."),
)
SPECIAL = {"pad_token": "<blank>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
POSITIONS = {"Rotary": -1, "Alibi": -2, "SinusoidalInterleaved": 0, "SinusoidalConcat": 0}
REFUSED = (
    "ffn_layernorm", "shared_layer_norm", "parallel_residual", "query_norm", "key_norm", "value_norm", "q_gating", "attn_scaling",
    "normalize", "embedding_layer_norm", "layer_types", "position_shift", "token_type_vocab_size", "left_pad",
)  # fmt: skip
"""Settings that make another model where they are set."""

Values = dict[str, Any]


@dataclass
class EoleFormat:
    """A Transformer that Eole trained for translation; it is only read. `source` is its folder, with config.json,
    vocab.json and model.00.safetensors."""

    source_lang: str = ""
    """the run's task.source_lang"""
    target_lang: str = ""
    """the run's task.target_lang; decides how BLEU tokenises"""
    source_subwords: str = ""
    """what cut the source into subwords: a .model of SentencePiece, or codes of subword-nmt; `none`: text is taken and given
    as the vocabulary has it, cut already; empty: as config.json says"""
    target_subwords: str = ""
    """the same of the target; empty: as `source_subwords`, if that is given"""


class EoleImporter:
    def __init__(self, config: EoleFormat):
        self.config = config

    def read(self, source: Path) -> Imported:
        """A model of architecture transformer.

        Raises:
            UserError: it is none, or has something that ours does not.
        """
        config, vocab = (read_settings(source / name) for name in ("config.json", "vocab.json"))
        names = {
            own: SPECIAL[key] for key, own in vocab.get("specials", {}).items() if key in SPECIAL
        }
        symbols = {side: [names.get(s, s) for s in vocab[side]] for side in ("src", "tgt")}
        start = vocab.get("decoder_start_token", "<s>")
        file = source / "config.json"
        options = _options(config, file)
        weights = _weights(source, options)
        model = Model(
            file,
            options,
            weights,
            with_end(symbols["src"]),
            symbols["tgt"],
            names.get(start, start),
        )
        return imported(model, self.config)


def _options(config: Values, file: Path) -> Values:
    """As OpenNMT-py would have them. A setting of both stacks may stand with each of them, or with the model."""
    model, training = config.get("model", {}), config.get("training", {})
    stacks = [model.get(stack) or {} for stack in ("encoder", "decoder")]
    embeddings = model.get("embeddings") or {}

    def of(key: str, default: Any = None) -> Any:
        given = [stack.get(key, model.get(key, default)) for stack in stacks]
        if given[0] != given[1]:
            raise UserError(
                f"{file}: encoder and decoder differ in {key}: {given[0]} and {given[1]}"
            )
        return given[0]

    if model.get("architecture") not in ("transformer", "custom"):
        raise UserError(
            f"{file}: architecture {model.get('architecture')} is not read; only transformer is"
        )
    kind = embeddings.get(
        "position_encoding_type", of("position_encoding_type", "SinusoidalInterleaved")
    )
    rope = of("rope_config") or {}
    for wrong, what in (
        *((model.get(key) or embeddings.get(key) or of(key), f"{key} is set") for key in REFUSED),
        (kind not in (*POSITIONS, "Relative"), f"position_encoding_type is {kind}"),
        (of("encoder_layer_style", "standard") != "standard" and stacks[0], "encoder_layer_style is not standard"),
        (rope.get("scaling_type"), "rope_config has a scaling_type"),
        (of("head_dim") not in (None, of("hidden_size", 512) // of("heads", 8)), "head_dim is not hidden_size / heads"),
        (model.get("add_estimator"), "it has an estimator (add_estimator)"),
    ):  # fmt: skip
        if wrong:
            raise UserError(f"{file}: {what}; ours does not have that")
    relative = (
        of("n_positions", embeddings.get("n_positions")) if kind == "Relative" else POSITIONS[kind]
    )
    configs = config.get("transforms_configs") or {}
    made: Values = {
        "encoder_type": stacks[0].get("encoder_type", "transformer"),
        "decoder_type": stacks[1].get("decoder_type", "transformer"),
        "heads": of("heads", 8), "num_kv": of("heads_kv") or 0,
        "layer_norm": of("layer_norm", "standard").removesuffix("FP32"), "norm_eps": of("norm_eps", 1e-5),
        "pos_ffn_activation_fn": of("mlp_activation_fn", "relu"),
        "position_encoding": relative == 0, "position_encoding_type": kind,
        "max_relative_positions": relative, "relative_positions_buckets": of("relative_positions_buckets"),
        "rotary_theta": rope.get("rotary_theta", 10000), "rotary_interleave": rope.get("rotary_interleave", True),
        "rotary_dim": rope.get("rotary_dim", 0),
        "relative_unscaled": True,  # scores of distances are not divided by √D, as those of keys are
        "share_embeddings": model.get("share_embeddings"),
        "share_decoder_embeddings": model.get("share_decoder_embeddings"),
        "share_vocab": config.get("share_vocab"), "generator_function": model.get("generator_function"),
        "num_experts": of("num_experts"), "sliding_window": of("sliding_window"),
        "quant_layers": training.get("quant_layers"), "lora_layers": training.get("lora_layers"),
        "lora_embedding": training.get("lora_embedding"),
        "dropout": training.get("dropout", 0.3), "attention_dropout": training.get("attention_dropout", 0.1),
        "transforms": config.get("transforms"), "data": config.get("data"),
    }  # fmt: skip
    for settings in configs.values():
        for key, value in (settings or {}).items():
            if value and re.fullmatch(r"(src|tgt)_(subword_model|vocab_threshold)", key):
                made[key] = str(value).replace("${MODEL_PATH}/", "") if "model" in key else value
    return made


def _weights(folder: Path, options: Values) -> dict[str, Tensor]:
    parts = sorted(folder.glob("model.*.safetensors"))
    if not parts:
        raise UserError(f"{folder} has no model.00.safetensors")
    found: dict[str, Tensor] = {}
    for part in parts:
        for name, tensor in read_tensors(part).items():
            for pattern, new in NAMES:
                name = re.sub(pattern, new, name)
            found[name] = tensor
    source, target = (
        f"{s}.embeddings.make_embedding.emb_luts.0.weight" for s in ("encoder", "decoder")
    )
    if options["share_embeddings"] and source in found:  # the target's is not written then
        found.setdefault(target, found[source])
    return found
