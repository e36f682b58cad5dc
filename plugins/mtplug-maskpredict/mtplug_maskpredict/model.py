"""A conditional masked language model: which tokens stand where a partly masked target hides them, and how many
tokens it has (Ghazvininejad et al. 2019, arXiv:1904.09324, sections 2 and 3).

A *canvas* is a target as the decoder sees it: tokens, the id `mask_id` where one is to be told, `</s>` behind the
last, padding.

Shapes: B sentences, S source and T target positions, C model size, V vocabulary, L longest length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtplug.architectures import Model, Transformer, TransformerConfig
from mtplug.architectures.transformer import DecoderLayer
from mtplug.data.tokenizers import EOS, PAD
from mtplug.errors import UserError
from mtplug.nn.positions import PositionEncoding
from mtplug.registry import choice

ONLY = (
    "architecture cmlm_transformer tells masked tokens, and no next ones: it learns with criterion.name=cmlm and translates "
    "with search.name=mask_predict (and validation.search.name=mask_predict)"
)


@dataclass
class CmlmTransformerConfig(TransformerConfig):
    """Transformer whose decoder fills in masks and sees both sides of them (CMLM, Ghazvininejad et al. 2019)."""

    max_target_length: int = 256
    """tokens of the longest translation, which is the number of lengths that are told apart"""
    length: str = choice("absolute", "relative")
    """what the classifier of lengths tells: the number of target tokens, or how many more than source tokens
    they are, which is sooner learnt"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_target_length < 1:
            raise ValueError(f"max_target_length must be at least 1, not {self.max_target_length}")


class BothSidesLayer(DecoderLayer):
    """A decoder's layer without the causal mask."""

    def forward(self, x_BTC: Tensor, memory_BSC: Tensor, own: Any, cross: Any) -> Tensor:
        x_BTC = self.attention(x_BTC, **own)
        return self.ffn(self.cross(x_BTC, memory_BSC, **cross))


class CmlmTransformer(Transformer):
    """The Transformer's encoder, a decoder that sees the whole canvas, and a classifier of lengths.

    The length is read off the encoder's output at the source's `</s>`, which takes the place of the paper's token
    LENGTH: it means nothing else in a source.

    Args:
        config: settings.
        task: gives the sizes of the vocabularies.

    Attributes:
        mask_id: what stands for a masked token on a canvas, one more than the ids of the vocabulary.
    """

    takes_packed = False
    autoregressive = False
    decoder_layer = BothSidesLayer
    config: CmlmTransformerConfig

    def __init__(self, config: CmlmTransformerConfig, task: Any):
        super().__init__(config, task)
        self.decoder_position: PositionEncoding = config.position.build(
            config.stack(config.decoder_layers, causal=False)
        )
        self.mask_id = len(task.target_tokenizer)
        self.mask = nn.Parameter(torch.randn(config.dim) * config.dim**-0.5)
        sides = 1 if config.length == "absolute" else 2  # differences are negative, too
        self.length = nn.Linear(config.dim, sides * config.max_target_length + 1)
        nn.init.normal_(self.length.weight, std=config.dim**-0.5)
        nn.init.zeros_(self.length.bias)

    def decode(self, memory: Tensor, source_lengths: Tensor | None, canvas: Tensor) -> Tensor:
        """What `encode` gives and a canvas (B, T) to features (B, T, C), of which `project` makes logits."""
        lengths = (canvas != PAD).sum(1)
        own = {"key_lengths": lengths if bool((lengths < canvas.shape[1]).any()) else None}
        cross = {"key_lengths": source_lengths}
        x = self.embed(self._table, self.decoder_position, canvas)  # type: ignore[arg-type]
        for n, layer in enumerate(self.decoder):
            args = (x, memory, {**own, **self.where(self.decoder_position, n)}, cross)
            if self.keeps_activations or not self.training:
                x = layer(*args)
            else:
                x = checkpoint(layer, *args, use_reentrant=False)
        return self.decoder_norm(x)

    def _table(self, canvas: Tensor) -> Tensor:
        hidden = canvas == self.mask_id
        known = self.decoder_embedding(canvas.masked_fill(hidden, PAD))
        return torch.where(hidden[..., None], self.mask.to(known.dtype), known)

    def length_logits(self, memory: Tensor, source_lengths: Tensor) -> Tensor:
        """(B, S, C) of `encode` and the true lengths to (B, L + 1): of targets of 0, 1, … L tokens."""
        rows, most = torch.arange(len(memory), device=memory.device), self.config.max_target_length
        logits = self.length(memory[rows, source_lengths - 1])
        if self.config.length == "relative":
            # Of differences from -L to L, those that lead to 0, 1, … L.
            lengths = torch.arange(most + 1, device=memory.device)
            logits = logits.gather(1, (lengths - source_lengths[:, None] + 1 + most).clamp(min=0))
        return logits

    def forward(  # type: ignore[override]
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        """As every model's, but of a canvas.

        Raises:
            UserError: it is no canvas but a target shifted right, as other criteria and searches give it.
        """
        if is_shifted(prev_output_tokens):
            raise UserError(ONLY)
        memory, lengths = self.encode(source_tokens, source_lengths)
        return self.decode(memory, lengths, prev_output_tokens)

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> Any:
        raise UserError(ONLY)

    def step(self, state: Any, tokens: Tensor) -> Tensor:
        raise UserError(ONLY)


def is_shifted(tokens: Tensor) -> bool:
    """Is (B, T) a target shifted right, `</s>` first, and no canvas?"""
    return tokens.shape[1] > 1 and bool(((tokens[:, 0] == EOS) & (tokens[:, 1] != PAD)).any())


class FillsMasks:
    """A criterion or search for these models."""

    @staticmethod
    def why_not(config: Any, model: Model) -> str:
        """What keeps it from being used with a model or ensemble; empty if nothing does."""
        for one in getattr(model, "models", [model]):
            if not isinstance(one, CmlmTransformer):
                return (
                    f"it fills in masks, which {type(one).__name__} has not learnt; it goes with "
                    "architecture.name=cmlm_transformer"
                )
        return ""


def members(model: Model) -> list[CmlmTransformer]:
    """The models of an ensemble, or the one.

    Raises:
        UserError: one of them fills in no masks.
    """
    if reason := FillsMasks.why_not(None, model):
        raise UserError(reason)
    return list(getattr(model, "models", [model]))


def lowest(values: Tensor, counts: Tensor, many: Tensor) -> Tensor:
    """Where the `many` (R,) lowest of the first `counts` (R,) values of each row stand, the first of equal ones:
    (R, T) bool."""
    places = torch.arange(values.shape[1], device=values.device)
    values = values.masked_fill(places >= counts[:, None], torch.inf)
    return values.argsort(dim=1, stable=True).argsort(dim=1) < many[:, None]


def mean_log_probs(logits: list[Tensor]) -> Tensor:
    """Logits (…, V) of several models to the logarithm of their mean probabilities, in fp32."""
    if len(logits) == 1:
        return logits[0].log_softmax(-1, dtype=torch.float32)
    log_probs = torch.stack([x.log_softmax(-1, dtype=torch.float32) for x in logits])
    return log_probs.logsumexp(0) - math.log(len(logits))
