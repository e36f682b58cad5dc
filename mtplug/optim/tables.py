"""Which parameters are tables of vectors, for optimizers that treat matrices in a way of their own."""

from __future__ import annotations

from torch import Tensor, nn

from mtplug.nn.positions import PositionEncoding


def mark_tables(model: nn.Module, output: Tensor | None) -> None:
    """Let the parameters of embeddings, of position encodings and of the output projection say that they are tables.

    An optimizer is given parameters without their names. `is_table` tells it of those whose rows
    stand for one token, place or distance each, so that what suits a linear map does not suit them.

    Args:
        output: the weight of the output projection, if there is one.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.is_table = True  # type: ignore[attr-defined,assignment]
        elif isinstance(module, PositionEncoding):
            for parameter in module.parameters(recurse=False):
                parameter.is_table = True  # type: ignore[attr-defined]
    if output is not None:
        output.is_table = True  # type: ignore[attr-defined]


def is_table(parameter: Tensor) -> bool:
    """Whether `mark_tables` found a parameter to be a table."""
    return getattr(parameter, "is_table", False)
