"""What training and search ask of a model.

Shapes: B sentences, K hypotheses of each, S source and T target positions, C model size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.errors import UserError


class DecodingState(ABC):
    """What a model remembers of B·K hypotheses between two steps of a search."""

    @abstractmethod
    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        """Keep some sentences, and for each of its new hypotheses the memory of a parent.

        Args:
            sentences: (B',) numbers of the sentences that go on, among the B there were, in their
                order; a number may come several times, which makes copies.
            parents: (B', K') for each new hypothesis the row b·K + k it continues.
        """


class Model(nn.Module, ABC):
    """An encoder-decoder, or anything else that scores target tokens given a source.

    Only `forward` and `project` must be written; search then works by recomputing each prefix. A
    model that overrides `start` and `extend` decodes incrementally. (One whose features are not
    enough to make logits of may override `step` instead; it cannot search with a shortlist.)

    Attributes:
        keeps_activations: false after `checkpoint_activations`.
        takes_packed: whether `forward` has a fourth parameter `target_lengths`. Where that is
            given, N sentences lie one after another in one row: tokens are (1, all), both
            lengths (N,), and so are the features (1, all, C).
        aligned: whether features are those of the source positions, (B, S, C), as of an encoder by itself.
            Such a model is for tasks that are `aligned` too; it takes no notice of prev_output_tokens, and
            has no `start` and `step`.
        autoregressive: whether features predict the next token, given those before it. Where not, and the model
            is not aligned either, its decoder is given targets that are not shifted, with or without masks, and
            only criteria and searches whose `why_not` allows it accept the model.
        reads_source: whether the source decides anything; a language model's is empty.
        normalised: whether a softmax of the logits gives the model's probabilities; where not,
            they are scores that a search adds up as they are.
        base_names, names_before, adapter_config: of a model that is adapted to a base by a PEFT method; see
            `mtplug.training.finetune.adapt`.
    """

    keeps_activations = True
    takes_packed = False
    normalised = True
    aligned = False
    autoregressive = True
    reads_source = True
    base_names: frozenset[str] = frozenset()
    names_before: frozenset[str] | None = None
    adapter_config: dict[str, Any] | None = None

    def checkpoint_activations(self) -> None:
        """Compute what is inside of layers again in the backward pass (Chen et al. 2016).

        Raises:
            UserError: this architecture does not do so.
        """
        raise UserError(
            f"training.activation_checkpointing: {type(self).__name__} does not support it; set it "
            "to false"
        )

    @abstractmethod
    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        """(B, S), (B,), (B, T) to features (B, T, C), of which `project` makes logits."""

    def describe(self, device: torch.device, packing: bool = False) -> list[str]:
        """Lines for the start of a training: how the model will be computed there.

        Raises:
            UserError: it cannot be.
        """
        return []

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """(…, C) features to (…, V) logits."""

    def table_pieces(self, tokenizer: Any) -> dict[str, list[str]]:
        """What the rows of tensors stand for, by the tensor's name: of tables that do not have a row for each id of the
        source's tokenizer, so that a run which starts from another vocabulary finds its rows."""
        return {}

    def roles(self) -> dict[str, str]:
        """What modules are for, so that one fine-tuning configuration fits every architecture.

        Returns:
            The path of a module (as `get_submodule` takes it) to its role. Roles are read part by
            part, so that `ffn.in` means those of both stacks, and `encoder` all of one:

            - `encoder.self.q`, and `k`, `v`, `out`: linear maps around attention; `decoder.self.…`,
              `decoder.cross.…` likewise
            - `encoder.self`, `decoder.cross`: the `MultiHeadAttention` that holds them
            - `encoder.ffn.in`, `encoder.ffn.out`: linear maps of a feed-forward layer, `encoder.ffn.gate`
              that of its gate, if it has one; `encoder.ffn`: a module that is called with its input alone,
              in training and in search
            - `encoder.rnn`, `encoder.conv`, …: what other layers are made of
            - `encoder.layer`: the module whose output leaves a layer, in training and in search
            - `encoder.norm`: normalisations
            - `encoder.embedding`, `decoder.embedding`: tables of tokens; `output`: the map to logits

            Modules without a role are named by their path. Tied weights need not be told.
        """
        return {}

    @property
    def output_weight(self) -> Tensor | None:
        """(V, C) where `project` is nothing but a product with it, so that criteria may fuse it."""
        return None

    @property
    def output_map(self) -> tuple[Tensor, Tensor | None] | None:
        """(V, C) and (V,) or None where `project` is a product with the one and a sum with the other, so that a shortlist
        may take rows of them."""
        return None if self.output_weight is None else (self.output_weight, None)

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor | None:
        """As `forward`, but (B, T, S): how much each output looks at each source token, summing to
        1 over the source. None if the model has no such thing to show.

        Like `forward`, a model that is not autoregressive is given the targets themselves, which are not shifted.
        """
        return None

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> DecodingState:
        """The state of a search before its first step, with K = 1."""
        return _PrefixState(source_tokens, source_lengths)

    def step(self, state: DecodingState, tokens: Tensor) -> Tensor:
        """Extend every hypothesis by its token; (B, K, V) logits of the next. See `extend`."""
        return self.project(self.extend(state, tokens))

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        """Extend every hypothesis by its token.

        Args:
            state: changed in place.
            tokens: (B, K), what was chosen last; `</s>` at first.

        Returns:
            (B, K, C) features, of which `project` makes the logits of the next token.

        Raises:
            UserError: the model has a `start` and `step` of its own, and no `extend`.
        """
        if not isinstance(state, _PrefixState):
            raise UserError(
                f"search: {type(self).__name__} decodes by a step of its own and gives no features, which this "
                "search asks for"
            )
        sentences, beam = tokens.shape
        state.prefix = torch.cat([state.prefix, tokens.reshape(-1, 1)], dim=1)
        features = self(
            state.source_tokens.repeat_interleave(beam, 0),
            state.source_lengths.repeat_interleave(beam, 0),
            state.prefix,
        )
        return features[:, -1].view(sentences, beam, -1)


class _PrefixState(DecodingState):
    """Remembers the prefixes themselves."""

    def __init__(self, source_tokens: Tensor, source_lengths: Tensor):
        self.source_tokens, self.source_lengths = source_tokens, source_lengths
        self.prefix = source_tokens.new_empty(len(source_tokens), 0)

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        self.source_tokens = self.source_tokens[sentences]
        self.source_lengths = self.source_lengths[sentences]
        self.prefix = self.prefix[parents.reshape(-1)]


def output_of(model: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The two of `Model.output_map`, also of a module that only has an `output_weight`; None for what there is not."""
    if isinstance(model, Model):
        return model.output_map or (None, None)
    return getattr(model, "output_weight", None), None


def why_unfit(factory: Any, config: Any, model: Model) -> str:
    """What keeps a criterion or search from being used with a model; empty if nothing does.

    The static method `why_not(config, model)` of its factory says so; without one it is for models that are
    autoregressive or aligned.
    """
    if own := getattr(factory, "why_not", None):
        return own(config, model)
    if model.autoregressive or model.aligned:
        return ""
    return f"it needs a model that predicts the next token, which {type(model).__name__} does not"
