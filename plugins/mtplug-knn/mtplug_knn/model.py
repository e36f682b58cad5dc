"""The model of a search: λ · p_kNN + (1 - λ) · p_model (Khandelwal et al. 2021, arXiv:2010.00710, equation 3).

Shapes: B sentences, K hypotheses of each, S source and T target positions, C model size, V vocabulary,
k neighbours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtplug.architectures.base import DecodingState, Model
from mtplug.errors import UserError
from mtplug_knn.datastore import Datastore


class NearestNeighbours(Model):
    """A model whose probabilities are mixed with those of the tokens written in similar states.

    p_kNN(y) ∝ Σ over the k nearest keys with value y of exp(-distance / temperature), the distance being
    the squared Euclidean one (equation 2).

    Args:
        model: whose `step` is its `extend` and `project`; any but one with a step of its own.
        datastore: made with this model.
        k: neighbours.
        temperature: greater ones make the neighbours more alike.
        weight: λ, of p_kNN; below 1.

    Raises:
        UserError: the model has a step of its own, which keeps its states to itself.
    """

    def __init__(
        self, model: Model, datastore: Datastore, k: int, temperature: float, weight: float
    ):
        super().__init__()
        if type(model).step is not Model.step and type(model).extend is Model.extend:
            raise UserError(
                f"search.name: knn: {type(model).__name__} has a step of its own, so its states are not known"
            )
        self.autoregressive = model.autoregressive
        self.model, self.datastore = model, datastore
        self.k, self.temperature, self.weight = k, temperature, weight

    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        return self.model(source_tokens, source_lengths, prev_output_tokens)

    def project(self, features: Tensor) -> Tensor:
        """(…, C) to (…, V) log-probabilities of the mixture."""
        own = self.model.project(features).float().log_softmax(-1)
        if not self.weight:
            return own
        near = self.neighbours(features.reshape(-1, features.shape[-1]), own.shape[-1])
        near = near.view_as(own).log() + math.log(self.weight)
        return torch.logaddexp(own + math.log1p(-self.weight), near)

    def neighbours(self, queries: Tensor, size: int) -> Tensor:
        """(N, C) to p_kNN (N, V)."""
        found = self.datastore.search(queries.detach().float().cpu().numpy(), self.k)
        distances, tokens = (torch.from_numpy(x).to(queries.device) for x in found)
        weights = (-distances / self.temperature).softmax(-1)
        return weights.new_zeros(len(queries), size).scatter_add_(1, tokens, weights)

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor | None:
        return self.model.cross_attention(source_tokens, source_lengths, prev_output_tokens)

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> DecodingState:
        return self.model.start(source_tokens, source_lengths)

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        return self.model.extend(state, tokens)
