"""Format `llama`: folders of transformers' LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM, read
and written.

Shapes: V vocabulary, C model size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.data.tokenizers import EOS, PAD, UNK
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.hugging_face import LikeExporter, read_settings, read_weights, taken
from mtplug_llama.model import BIASED, Llama
from mtplug_llama.tokenizer import ABSENT, SOURCE, PromptTokenizer, PromptTokenizerConfig

KINDS = ("llama", "mistral", "qwen2", "qwen3")
TABLE, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
LONGEST = 2048
"""Tokens of a side, where the model allows more."""


@dataclass
class LlamaFormat:
    """A folder of Llama, Mistral, Qwen2 or Qwen3 for `transformers`. Reading wants `prompt`, writing `like`."""

    prompt: str = ""
    """what stands around each source text, which is {source}, as the model was trained; a backslash and n is a new line"""
    end: str = ""
    """the token that ends a translation; empty: that of tokenizer_config.json or config.json"""
    source_lang: str = ""
    """the run's task.source_lang"""
    target_lang: str = ""
    """the run's task.target_lang; decides how BLEU tokenises"""
    like: str = ""
    """for writing: the folder that the model was read from, whose settings and tokenizer stay as they are"""


class LlamaExporter(LikeExporter):
    name, architecture = "llama", Llama
    rows: list[int]
    """By our id that of the model."""
    kept = ("dim", "ffn_dim", "heads", "kv_heads", "head_dim", "layers", "bias", "qk_norm")

    def settings(self, config: dict[str, Any], where: Path) -> dict[str, Any]:
        return _architecture(config, where)[0]

    def size(self, config: dict[str, Any]) -> int:
        return config["vocab_size"] + self.rows.count(ABSENT)

    def why_not(self, model: nn.Module, task: Any) -> str:
        if reason := super().why_not(model, task):
            return reason
        if not isinstance(task.target_tokenizer, PromptTokenizer):
            return "the run's tokenizer is not that of the model"
        return ""

    def export(self, translator: Any, path: Path) -> None:
        self.rows = getattr(translator.task.target_tokenizer, "theirs", [])
        super().export(translator, path)

    def tensors(
        self,
        weights: dict[str, Tensor],
        settings: dict[str, Any],
        config: dict[str, Any],
        like: Path,
    ) -> dict[str, Tensor]:
        tensors = {theirs: weights[ours] for ours, theirs in _names(settings)}
        rows = torch.tensor(self.rows)
        for ours, theirs in (("embedding.weight", TABLE), ("output.weight", OUTPUT)):
            if theirs == OUTPUT and torch.equal(weights[ours], weights["embedding.weight"]):
                continue  # which reading finds in the other
            table = torch.empty(config["vocab_size"], settings["dim"])
            table[rows[rows != ABSENT]] = weights[ours][rows != ABSENT]
            tensors[theirs] = table
        return tensors

    def read(self, source: Path) -> Imported:
        """A folder with config.json, the weights, tokenizer.json and, as the model has it, tokenizer_config.json.

        Raises:
            UserError: a file is missing, or the model has something that ours does not.
        """
        if SOURCE not in self.config.prompt:
            raise UserError(
                "prompt is missing: what the model expects around a text, as its page says, such as "
                r""" "prompt='English: {source}\nGerman:'" """.strip()
            )
        PromptTokenizerConfig(self.config.prompt)
        config = read_settings(source / "config.json")
        settings, limit = _architecture(config, source)
        file, rows = _ids(source, config, self.config.end)
        theirs = read_weights(source)
        found = {ours: taken(theirs, name, source) for ours, name in _names(settings)}
        table = taken(theirs, TABLE, source)
        output = theirs.pop(OUTPUT, table)
        if left := [name for name in theirs if not name.endswith("rotary_emb.inv_freq")]:
            raise UserError(f"{source}: the model has {min(left)}, which ours do not have")
        settings["tie_embeddings"] = torch.equal(output, table)
        settings["absent"] = [i for i, row in enumerate(rows) if row == ABSENT]
        found["embedding.weight"] = _placed(table, rows)
        if not settings["tie_embeddings"]:
            found["output.weight"] = _placed(output, rows)
        run = {
            "task": {
                "name": "translation", "source_lang": self.config.source_lang, "target_lang": self.config.target_lang
            },
            "tokenizer": {"name": "llama", "prompt": self.config.prompt},
            "architecture": settings,
            "data": {"max_length": min(limit // 2, LONGEST)},
        }  # fmt: skip
        sides = {"source": self.config.prompt, "target": ""}
        made = {side: PromptTokenizer(file, rows, prompt) for side, prompt in sides.items()}
        return Imported(run, {**made}, found)


def _architecture(config: dict[str, Any], where: Path) -> tuple[dict[str, Any], int]:
    """Our settings, and how many positions the model was made for.

    Raises:
        UserError: it is one that ours cannot be.
    """
    kind = config.get("model_type")
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    scaled = rope.get("rope_type", rope.get("type", "default"))
    for wrong, what in (
        (kind not in KINDS, f"model_type is {kind}, none of {', '.join(KINDS)}"),
        (config.get("hidden_act", "silu") != "silu", "hidden_act is not silu, as ours"),
        (config.get("mlp_bias"), "its feed-forward layers have biases, which ours do not have"),
        (
            scaled != "default" or "factor" in rope,
            f"its rotations are scaled ({scaled}), which ours are not",
        ),
    ):
        if wrong:
            raise UserError(f"{where}: {what}")
    heads = config["num_attention_heads"]
    bias = "attention" if config.get("attention_bias") else "none"
    limit = int(config.get("max_position_embeddings", LONGEST))
    if config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window"):
        limit = min(limit, int(config["sliding_window"]))
    return {
        "name": "llama", "dim": config["hidden_size"], "ffn_dim": config["intermediate_size"],
        "layers": config["num_hidden_layers"], "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "norm": "pre", "norm_type": "rms", "activation": "swiglu",
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "bias": "qkv" if kind == "qwen2" else bias, "qk_norm": kind == "qwen3", "dropout": 0.0,
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
        "position": {
            "name": "rope", "base": float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
        },
    }, limit  # fmt: skip


def _names(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(our name, theirs) of each weight but the tables."""
    for n in range(settings["layers"]):
        ours, theirs = f"layers.{n}", f"model.layers.{n}"
        for piece, name in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
            kinds = ("weight", "bias") if piece in BIASED[settings["bias"]] else ("weight",)
            for kind in kinds:
                at = f"{theirs}.self_attn.{name}_proj.{kind}"
                yield f"{ours}.attention.body.{piece}.{kind}", at
        if settings["qk_norm"]:
            for piece in "qk":
                at = f"{theirs}.self_attn.{piece}_norm.weight"
                yield f"{ours}.attention.body.{piece}_norm.weight", at
        for piece, name in (("gate", "gate"), ("inner", "up"), ("outer", "down")):
            yield f"{ours}.ffn.body.{piece}.weight", f"{theirs}.mlp.{name}_proj.weight"
        yield f"{ours}.attention.norm.weight", f"{theirs}.input_layernorm.weight"
        yield f"{ours}.ffn.norm.weight", f"{theirs}.post_attention_layernorm.weight"
    yield "norm.weight", "model.norm.weight"


def _ids(folder: Path, config: dict[str, Any], end: str) -> tuple[str, list[int]]:
    """What tokenizer.json holds, and by our id that of the model.

    Padding and unknown are those of the tokenizer, or ids that no text has, or ours alone.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; transformers' AutoTokenizer makes it of other files: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    text = file.read_text(encoding="utf-8")
    tokenizer = PromptTokenizer(text, []).processor
    told = read_settings(folder / "tokenizer_config.json", {})
    count: int = config["vocab_size"]

    def known(key: str) -> int | None:
        token = told.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        return tokenizer.token_to_id(token) if token else None

    ended = known("eos_token")
    if end:
        ended = tokenizer.token_to_id(end)
        if ended is None:
            raise UserError(f"end: the model has no token {end}")
    elif ended is None:
        given: Any = config.get("eos_token_id")
        ended = given[0] if isinstance(given, list) and given else given
    if ended is None or not ended < count:
        raise UserError(f"{folder} does not say which token ends a text; set end=TOKEN")
    unknown = known("unk_token")
    if unknown is None:
        unknown = (json.loads(text).get("model") or {}).get("unk_token")
        unknown = tokenizer.token_to_id(unknown) if unknown else None
    special: dict[int, int] = {EOS: ended}
    free = [i for i in range(count) if tokenizer.id_to_token(i) is None]
    for ours, wanted in ((UNK, unknown), (PAD, known("pad_token"))):
        if wanted is None or wanted in special.values() or wanted >= count:
            wanted = free.pop() if free else ABSENT
        special[ours] = wanted
    used = set(special.values())
    first = [special[i] for i in (PAD, EOS, UNK)]
    return text, [*first, *(i for i in range(count) if i not in used)]


def _placed(table: Tensor, rows: list[int]) -> Tensor:
    """A table in the order of our ids; what the model has not is 0."""
    index = torch.tensor(rows)
    found = table[index.clamp(min=0)]
    found[index == ABSENT] = 0
    return found
