"""Checkpoints as OpenNMT-py 3 lays them out, with weights that a formula gives, so that any machine makes the same."""

import argparse
import json
import math
import re

import torch
from safetensors.torch import save_file

WORDS = ["ka", "lo", "mi", "ti", "zu", "one", "two", "three", "four", "six", "nine", "ten"]
SPECIAL = ["<unk>", "<blank>", "<s>", "</s>"]
SHARED = {"share_embeddings": True, "share_decoder_embeddings": True, "share_vocab": True}
TEXTS = ["ka lo mi", "ti", "zu what lo lo lo mi ka ti"]
TARGETS = ["one two three", "ten", "six what four two two nine"]

LAYOUTS = {
    "default": {"position_encoding": True, **SHARED},
    "separate": {
        "position_encoding": True, "add_qkvbias": True, "add_ffnbias": True, "share_vocab": False,
        "pos_ffn_activation_fn": "gated-gelu", "norm_eps": 0.1,
    },
    "one_table_of_words": {"position_encoding": True, "share_embeddings": True, "share_vocab": True},
    "concat": {"position_encoding": True, "position_encoding_type": "SinusoidalConcat", **SHARED},
    "shaw": {"max_relative_positions": 2, "num_kv": 1, **SHARED},
    "rotary": {
        "max_relative_positions": -1, "rotary_theta": 100, "share_vocab": False,
        "share_decoder_embeddings": True, "pos_ffn_activation_fn": "gelu",
    },
    "rotary_in_pairs": {
        "max_relative_positions": -1, "rotary_interleave": True, "add_qkvbias": True, **SHARED,
    },
    "alibi": {
        "max_relative_positions": -2, "layer_norm": "rms", "pos_ffn_activation_fn": "silu", **SHARED,
    },
}  # fmt: skip


def checkpoint(**given):
    """What OpenNMT-py saves, for these options."""
    options = {
        "model_task": "seq2seq", "model_type": "text", "encoder_type": "transformer", "decoder_type": "transformer",
        "enc_layers": 2, "dec_layers": 2, "hidden_size": 16, "src_word_vec_size": 16, "tgt_word_vec_size": 16, "heads": 4,
        "transformer_ff": 24, "dropout": [0.1], "attention_dropout": [0.0], "layer_norm": "standard", "norm_eps": 1e-6,
        "pos_ffn_activation_fn": "relu", "position_encoding": False, "position_encoding_type": "SinusoidalInterleaved",
        "max_relative_positions": 0, "relative_positions_buckets": 0, "rotary_theta": 10000, "rotary_interleave": False,
        "rotary_dim": 0, "num_kv": 0, "add_qkvbias": False, "add_ffnbias": False, "share_embeddings": False,
        "share_decoder_embeddings": False, "share_vocab": False, "copy_attn": False, "self_attn_type": "scaled-dot",
        "lora_layers": [], "quant_layers": [], "transforms": [], "_all_transform": set(), "data": {},
        **given,
    }  # fmt: skip
    both = SPECIAL + WORDS
    vocab = {"src": both, "tgt": both, "data_task": "seq2seq", "decoder_start_token": "<s>"}
    if not options["share_vocab"]:
        vocab |= {"src": SPECIAL + WORDS[:5], "tgt": [*SPECIAL[::-1], *WORDS[5:], "pad1"]}
    model = {
        name: _positions(options["position_encoding_type"])
        if name.endswith("pe.pe")
        else _weight(number, shape)
        for number, (name, shape) in enumerate(_shapes(options, vocab))
    }
    tables = [f"{s}.embeddings.make_embedding.emb_luts.0.weight" for s in ("encoder", "decoder")]
    if options["share_embeddings"]:
        model[tables[1]] = model[tables[0]]
    if options["share_decoder_embeddings"]:
        model["generator.weight"] = model[tables[1]]
    generator = {part: model.pop(f"generator.{part}") for part in ("weight", "bias")}
    opt = argparse.Namespace(**options)
    return {"model": model, "generator": generator, "vocab": vocab, "opt": opt, "optim": None}


def _weight(number, shape):
    made = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 12.9898 + number) * 0.5
    return made.view(shape).float()


def _positions(kind, count=5000, dim=16):
    """(count, 1, dim) sinusoids; those that are not interleaved have other frequencies, too."""
    concat = kind == "SinusoidalConcat"
    steps = torch.arange(dim // 2) / (dim // 2 - 1 if concat else dim // 2)
    angles = torch.arange(count)[:, None] * 10000.0**-steps
    pair = (angles.sin(), angles.cos())
    made = torch.cat(pair, 1) if concat else torch.stack(pair, 2).flatten(1)
    return made[:, None]


def _shapes(options, vocab):
    dim, inner, heads = options["hidden_size"], options["transformer_ff"], options["heads"]
    keys = dim // heads * (options["num_kv"] or heads)

    def linear(name, out, into, bias):
        yield f"{name}.weight", (out, into)
        if bias:
            yield f"{name}.bias", (out,)

    def norm(name):
        yield f"{name}.weight", (dim,)
        if options["layer_norm"] == "standard":
            yield f"{name}.bias", (dim,)

    def attention(name, positions):
        sizes = {"keys": keys, "values": keys, "query": dim}
        for piece, out in sizes.items():
            yield from linear(f"{name}.linear_{piece}", out, dim, options["add_qkvbias"])
        yield from linear(f"{name}.final_linear", dim, dim, options["add_qkvbias"])
        if positions > 0:
            table = f"{name}.relative_positions_embeddings.weight"
            yield table, (2 * positions + 1, dim // heads)

    for stack, side, layers in (
        ("encoder", "src", "transformer"), ("decoder", "tgt", "transformer_layers"),
    ):  # fmt: skip
        made = f"{stack}.embeddings.make_embedding"
        yield f"{made}.emb_luts.0.weight", (len(vocab[side]), dim)
        if options["position_encoding"]:
            yield f"{made}.pe.pe", (5000, 1, dim)
        for n in range(2):
            at = f"{stack}.{layers}.{n}"
            yield from attention(f"{at}.self_attn", options["max_relative_positions"])
            if stack == "decoder":
                yield from attention(f"{at}.context_attn", 0)
                yield from norm(f"{at}.layer_norm_2")
            yield from norm(f"{at}.layer_norm_1" if stack == "decoder" else f"{at}.layer_norm")
            yield from linear(f"{at}.feed_forward.w_1", inner, dim, options["add_ffnbias"])
            yield from linear(f"{at}.feed_forward.w_2", dim, inner, options["add_ffnbias"])
            if options["pos_ffn_activation_fn"] in ("silu", "gated-gelu"):
                yield from linear(f"{at}.feed_forward.w_3", inner, dim, options["add_ffnbias"])
            yield from norm(f"{at}.feed_forward.layer_norm")
        yield from norm(f"{stack}.layer_norm")
    yield from linear("generator", len(vocab["tgt"]), dim, True)


EOLE = {
    "encoder.embeddings.make_embedding.emb_luts.0": "src_emb.embeddings",
    "decoder.embeddings.make_embedding.emb_luts.0": "tgt_emb.embeddings",
    "encoder.embeddings.make_embedding.pe": "src_emb.pe",
    "decoder.embeddings.make_embedding.pe": "tgt_emb.pe",
    ".feed_forward.layer_norm": ".post_attention_layernorm",
    ".feed_forward.w_1": ".mlp.gate_up_proj",
    ".feed_forward.w_2": ".mlp.down_proj",
    ".feed_forward.w_3": ".mlp.up_proj",
    "encoder.transformer.": "encoder.transformer_layers.",
    ".layer_norm_1": ".input_layernorm",
    ".layer_norm_2": ".precontext_layernorm",
}


def eole(folder, name, **settings):
    """A model as Eole saves it, of the same weights as the checkpoint of a layout; `settings` are further ones of the model."""
    folder.mkdir()
    o = LAYOUTS[name]
    made = checkpoint(**o)
    tensors = {}
    for theirs, tensor in (
        *made["model"].items(),
        *((f"generator.{k}", t) for k, t in made["generator"].items()),
    ):
        for old, new in EOLE.items():
            theirs = theirs.replace(old, new)
        if theirs.startswith("encoder.transformer_layers."):
            theirs = theirs.replace(".layer_norm.", ".input_layernorm.")
        # With add_qkvbias, Eole 0.6 has a bias there in the decoder only.
        if not re.match(r"encoder\..*\.final_linear\.bias", theirs):
            tensors[theirs] = tensor.clone()
    if o.get("share_embeddings"):
        del tensors["tgt_emb.embeddings.weight"]
    if o.get("share_decoder_embeddings"):
        del tensors["generator.weight"]
    save_file(tensors, folder / "model.00.safetensors")
    relative = o.get("max_relative_positions", 0)
    kinds = {0: o.get("position_encoding_type", "SinusoidalInterleaved"), -1: "Rotary", -2: "Alibi"}
    gates = {"silu": "gated-silu"}
    model = {
        "architecture": "transformer", "hidden_size": 16, "layers": 2, "transformer_ff": 24, "heads": 4,
        "embeddings": {"word_vec_size": 16, "position_encoding_type": kinds.get(relative, "Relative")},
        "encoder": {"encoder_type": "transformer"}, "decoder": {"decoder_type": "transformer"},
        "layer_norm": o.get("layer_norm", "standard"), "norm_eps": o.get("norm_eps", 1e-6),
        "mlp_activation_fn": gates.get(o.get("pos_ffn_activation_fn"), o.get("pos_ffn_activation_fn", "relu")),
        "add_qkvbias": o.get("add_qkvbias", False), "add_ffnbias": o.get("add_ffnbias", False),
        "share_embeddings": o.get("share_embeddings", False),
        "share_decoder_embeddings": o.get("share_decoder_embeddings", False),
    }  # fmt: skip
    if relative > 0:
        model["embeddings"]["n_positions"] = relative
    if relative == -1:
        model["rope_config"] = {
            "rotary_theta": o.get("rotary_theta", 10000), "rotary_interleave": o.get("rotary_interleave", False),
        }  # fmt: skip
    if o.get("num_kv"):
        model["heads_kv"] = o["num_kv"]
    special = {
        "pad_token": "<blank>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    vocab = {
        "src": made["vocab"]["src"],
        "tgt": made["vocab"]["tgt"],
        "decoder_start_token": "<s>",
        "specials": special,
    }
    config = {
        "model": {**model, **settings},
        "share_vocab": o["share_vocab"],
        "src_vocab": "src.txt",
        "tgt_vocab": "tgt.txt",
        "transforms": [],
        "training": {"dropout": [0.1]},
    }
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "config.json").write_text(json.dumps(config))
    return folder
