"""Embeddings of both languages and the output layer, shared or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.base import Model
from mtplug.data.tokenizers import PAD
from mtplug.errors import UserError


def embedding(size: int, dim: int) -> nn.Embedding:
    """(size, dim) of variance 1/dim, nothing at the padding."""
    table = nn.Embedding(size, dim, padding_idx=PAD)
    nn.init.normal_(table.weight, std=dim**-0.5)
    with torch.no_grad():
        table.weight[PAD].zero_()
    return table


def output_layer(size: int, dim: int, tied: nn.Embedding | None) -> nn.Linear:
    """Features (…, dim) to logits (…, size), by the weights of `tied` if that is given."""
    output = nn.Linear(dim, size, bias=False)
    if tied is None:
        nn.init.normal_(output.weight, std=dim**-0.5)
    else:
        output.weight = tied.weight
    return output


class Projecting(Model):
    """A model whose `output` makes logits of features."""

    output: nn.Linear

    def project(self, features: Tensor) -> Tensor:
        return self.output(features)

    @property
    def output_weight(self) -> Tensor | None:
        return self.output.weight


def tables(task: Any, dim: int, tie: str) -> tuple[nn.Embedding, nn.Embedding, nn.Linear]:
    """Source embedding, target embedding and output layer.

    Args:
        task: gives the sizes of the vocabularies.
        dim: of the embeddings, and of the features that make logits.
        tie: `all`: one table for the three; `decoder`: for target and output; `none`.

    Raises:
        UserError: all are to be shared, but there is more than one vocabulary.
    """
    source_size, target_size = len(task.source_tokenizer), len(task.target_tokenizer)
    if tie == "all" and task.source_tokenizer is not task.target_tokenizer:
        raise UserError(
            "architecture.tie_embeddings: all needs one vocabulary for both languages; "
            "set tokenizer.joint=true, or tie_embeddings=decoder"
        )
    source = embedding(source_size, dim)
    target = source if tie == "all" else embedding(target_size, dim)
    return source, target, output_layer(target_size, dim, None if tie == "none" else target)
