"""The layers of a Transformer, and what they remember while decoding.

Shapes: B sentences, K hypotheses of each, S source and T target positions, C model size, F inner size of
feed-forward layers, H heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtplug.architectures.base import DecodingState
from mtplug.architectures.embeddings import Projecting
from mtplug.errors import UserError
from mtplug.nn.activations import ACTIVATIONS
from mtplug.nn.ancestry import Ancestry
from mtplug.nn.attention import Attend, AttentionCall, MultiHeadAttention
from mtplug.nn.dropout import dropout
from mtplug.nn.positions import PositionEncoding, Stack, schemes_of
from mtplug.registry import Selected, choice, component_field, component_name, require_range


@dataclass
class AttentionConfig:
    """How attention is computed."""

    backend: str = component_name("attention_backends", "auto")
    """a component of kind attention_backends; auto: the fastest there is"""


@dataclass
class LayersConfig:
    """What the layers of a Transformer are made of."""

    dim: int = 512
    """model size"""
    ffn_dim: int = 2048
    """inner size of feed-forward layers"""
    heads: int = 8
    kv_heads: int = 0
    """heads of keys and values, each shared by several query heads (Ainslie et al. 2023); 0: as many as `heads`"""
    head_dim: int = 0
    """size of a head; 0: dim / heads"""
    norm: str = choice("post", "pre")
    """layer normalisation after each residual sum, or before each sublayer (for deep models)"""
    norm_type: str = choice("layer", "rms")
    """rms: only divided by the root mean square, and scaled (Zhang and Sennrich 2019)"""
    init: str = choice("xavier", "depth_scaled")
    """depth_scaled: the weights of layer l start 1/√l as large (Zhang et al. 2019, section 4), so
    that deep stacks train with norm=post too"""
    activation: str = choice("relu", "gelu", "gelu_tanh", "swish", "geglu", "geglu_tanh", "swiglu")
    """geglu, swiglu: gelu or swish of a further linear map gates the inner layer (Shazeer 2020); tanh: gelu by its
    approximation, as T5 1.1 has it"""
    dropout: float = 0.1
    """on embeddings and on each sublayer's output"""
    attention_dropout: float = 0.0
    """on attention weights"""
    activation_dropout: float = 0.0
    """inside feed-forward layers"""
    position: Selected = component_field("position_encodings", "sinusoidal")
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "dim", "ffn_dim", "heads")
        require_range(self, 0, 1, "dropout", "attention_dropout", "activation_dropout")
        require_range(self, 0, self.heads, "kv_heads")
        require_range(self, 0, math.inf, "head_dim")
        if self.dim % self.heads and not self.head_dim:
            raise ValueError(
                f"{self.heads} heads do not divide dim {self.dim}; set head_dim to the size of a head"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} kv_heads do not divide {self.heads} heads")

    def stack(self, layers: int, causal: bool) -> Stack:
        """What a position encoding is told of an encoder or decoder of such layers."""
        return Stack(self.dim, self.heads, layers, causal, self.head_dim)


Where = dict[str, Any]  # keyword arguments of an attention backend

_GATES = {
    "geglu": ACTIVATIONS["gelu"],
    "geglu_tanh": ACTIVATIONS["gelu_tanh"],
    "swiglu": ACTIVATIONS["swish"],
}


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between them, or that of a third which multiplies the first."""

    def __init__(self, config: LayersConfig):
        super().__init__()
        self.inner = nn.Linear(config.dim, config.ffn_dim)
        self.outer = nn.Linear(config.ffn_dim, config.dim)
        self.gated = config.activation in _GATES
        if self.gated:
            self.gate = nn.Linear(config.dim, config.ffn_dim)
        self.activation = (_GATES if self.gated else ACTIVATIONS)[config.activation]
        self.dropout = config.activation_dropout
        linears: Any = self.children()
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x)
        x = self.activation(self.gate(x)) * inner if self.gated else self.activation(inner)
        if self.dropout:
            x = dropout(x, self.dropout, self.training)
        return self.outer(x)


def for_products(x: Tensor) -> Tensor:
    """In the type of mixed precision. Autocast would convert `x` once for every product that takes it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def norm_of(config: LayersConfig) -> nn.Module:
    if config.norm_type == "rms":
        # torch's own epsilon depends on the type, and is 0.008 in bf16
        return nn.RMSNorm(config.dim, eps=1e-6)
    return nn.LayerNorm(config.dim)


def last_norm(config: LayersConfig) -> nn.Module:
    """What stands behind the last layer of a stack."""
    return norm_of(config) if config.norm == "pre" else nn.Identity()


def attention_of(
    config: LayersConfig, backend: Any, kind: type[MultiHeadAttention] = MultiHeadAttention
) -> MultiHeadAttention:
    how = (config.attention_dropout, backend, config.kv_heads, config.head_dim)
    return kind(config.dim, config.heads, *how)


class Sublayer(nn.Module):
    """Residual connection, dropout and layer normalisation around attention or feed-forward."""

    def __init__(self, config: LayersConfig, body: nn.Module):
        super().__init__()
        self.body = body
        self.norm = norm_of(config)
        self.pre, self.dropout = config.norm == "pre", config.dropout

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre else x

    def leave(self, x: Tensor, change: Tensor) -> Tensor:
        x = x + dropout(change, self.dropout, self.training)
        return x if self.pre else self.norm(x)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.leave(x, self.body(for_products(self.enter(x)), *args, **kwargs))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward layer. A subclass may have another attention as `attention_kind`."""

    attention_kind: type[MultiHeadAttention] = MultiHeadAttention

    def __init__(self, config: LayersConfig, backend: Any):
        super().__init__()
        self.attention = Sublayer(config, attention_of(config, backend, self.attention_kind))
        self.ffn = Sublayer(config, FeedForward(config))

    def forward(self, x_BSC: Tensor, where: Where) -> Tensor:
        return self.ffn(self.attention(x_BSC, **where))


class PrefixCache:
    """Keys and values (R, H, J, D) of one layer for the positions so far, R rows with J columns.

    Here a row is a hypothesis and a column a position; rows move with their hypotheses.

    Args:
        where: what self-attention of the layer is told of positions.
    """

    def __init__(self, where: Where):
        self._where = where
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.columns = 0

    def rows(self, x_BKC: Tensor) -> Tensor:
        """(R, new columns, C): the next position of each hypothesis as it is stored here."""
        return x_BKC.reshape(-1, 1, x_BKC.shape[-1])

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add (R, H, new columns, D)."""
        end = self.columns + k.shape[2]
        if self.k is None or self.v is None or end > self.k.shape[2]:
            # doubling, so that appending costs O(1) on average
            self.k, self.v = self.grown(k, v, end + max(self.columns, 16 * k.shape[2]))
        self.k[:, :, self.columns : end] = k
        self.v[:, :, self.columns : end] = v
        self.columns = end

    def grown(self, k: Tensor, v: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Room for `size` columns like those of k and v, with what there is so far."""
        new_k, new_v = self.empty_keys(k, size), _empty(v, size)
        if self.columns:
            new_k[:, :, : self.columns], new_v[:, :, : self.columns] = self.own()
        return new_k, new_v

    def empty_keys(self, like: Tensor, size: int) -> Tensor:
        """Room for `size` columns."""
        return _empty(like, size)

    def own(self) -> tuple[Tensor, Tensor]:
        assert self.k is not None and self.v is not None
        return self.k[:, :, : self.columns], self.v[:, :, : self.columns]

    def where(self) -> Where:
        """What attention is told when the columns of its queries have been added."""
        return {**self._where, "query_offset": self.columns - 1}

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        """As `DecodingState.reorder` has it."""
        if self.k is not None and self.v is not None:
            rows = parents.reshape(-1)
            self.k, self.v = self.k.index_select(0, rows), self.v.index_select(0, rows)


def _empty(like: Tensor, size: int) -> Tensor:
    return like.new_empty(*like.shape[:2], size, like.shape[3])


class StandingCache(PrefixCache):
    """One row for each sentence, and a column for each hypothesis and position, which stays.

    Args:
        ancestry: of all layers.

    Attributes:
        front: columns before those of hypotheses.
    """

    front = 0

    def __init__(self, where: Where, ancestry: Ancestry):
        super().__init__(where)
        self.ancestry = ancestry

    def rows(self, x_BKC: Tensor) -> Tensor:
        return x_BKC

    def where(self) -> Where:
        return {**self._where, "backend": self.ancestry, "query_offset": self.front}

    def empty_keys(self, like: Tensor, size: int) -> Tensor:
        # Transposed in memory: the product with queries is then twice as fast.
        return like.new_empty(*like.shape[:2], like.shape[3], size).mT

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        if self.k is None or self.v is None:
            return
        if len(sentences) != len(self.k):
            self.k = self.k.mT.index_select(0, sentences).mT
            self.v = self.v.index_select(0, sentences)
        if (kept := self.ancestry.kept) is not None:
            _, heads, _, dim = self.k.shape
            places = self.front + kept[:, None, :, None].expand(-1, heads, -1, dim)
            self.columns = self.front + kept.shape[1]
            for x in (self.k, self.v):
                x[:, :, self.front : self.columns] = x.gather(2, places)


class PrefixState(DecodingState):
    """What the layers of a decoder remember.

    On CPUs, whose memory is slow, keys and values stay where they are; elsewhere they move, so that the
    kernels of attention backends can be used.

    Args:
        wheres: for each layer what its self-attention is told of positions.
    """

    def __init__(self, wheres: Iterable[Where], device: torch.device):
        self.length = 0
        self.ancestry = Ancestry() if device.type == "cpu" else None
        self.layers = [self.cache(where) for where in wheres]

    def cache(self, where: Where) -> PrefixCache:
        return StandingCache(where, self.ancestry) if self.ancestry else PrefixCache(where)

    def advance(self, tokens: Tensor) -> None:
        """A step with (B, K) tokens begins."""
        self.length += 1
        if self.ancestry is not None:
            self.ancestry.advance(tokens)

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        if self.ancestry is not None:
            self.ancestry.reorder(sentences, parents)
        for cache in self.layers:
            cache.reorder(sentences, parents)


def roles_of_layer(layer: nn.Module, path: str, stack: str) -> dict[str, str]:
    """What `Model.roles` says of a layer's modules.

    Args:
        layer: with sublayers `attention`, `cross` or both, and `ffn`, whose body may be one of another kind.
        path: of the layer in the model.
        stack: encoder or decoder.
    """
    found = {}
    for sublayer, role in (("attention", f"{stack}.self"), ("cross", f"{stack}.cross")):
        if hasattr(layer, sublayer):
            at = f"{path}.{sublayer}"
            found[f"{at}.body"] = role
            found |= {f"{at}.body.{piece}": f"{role}.{piece}" for piece in ("q", "k", "v", "out")}
            found[f"{at}.norm"] = f"{stack}.norm"
    at = f"{path}.ffn"
    found |= {at: f"{stack}.layer", f"{at}.body": f"{stack}.ffn"}
    for piece, role in (("inner", "in"), ("gate", "gate"), ("outer", "out")):
        if hasattr(layer.get_submodule("ffn.body"), piece):
            found[f"{at}.body.{piece}"] = f"{stack}.ffn.{role}"
    found[f"{at}.norm"] = f"{stack}.norm"
    return found


def attend_to_prefix(sublayer: Sublayer, x_BKC: Tensor, cache: PrefixCache) -> Tensor:
    """Self-attention of one new position, which is added to `cache`."""
    attention: MultiHeadAttention = sublayer.body  # type: ignore[assignment]
    rows = cache.rows(sublayer.enter(x_BKC))
    cache.append(*attention.keys_values(rows))
    change = attention.attend(rows, *cache.own(), **cache.where())
    return sublayer.leave(x_BKC, change.view_as(x_BKC))


class LayeredModel(Projecting):
    """What models made of these layers have in common.

    Args:
        config: of the model.

    Attributes:
        embedding_scale: what embeddings are multiplied by, √C as in the paper of the Transformer.
    """

    def __init__(self, config: LayersConfig):
        super().__init__()
        self.config = config
        self.embedding_scale = math.sqrt(config.dim)
        self.backend = Attend(config.attention.backend)

    def attentions(self) -> dict[str, tuple[Any, ...]]:
        """What each kind of attention is told of positions, by its name."""
        raise NotImplementedError

    def stack(self, layer: Callable[..., nn.Module], count: int) -> nn.ModuleList:
        """`count` layers, initialised as the settings say."""
        layers = nn.ModuleList(layer(self.config, self.backend) for _ in range(count))
        if self.config.init == "depth_scaled":
            scale_by_depth(layers)
        return layers

    def embed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(…, L) ids to (…, L, C), what enters the first layer."""
        x = self.placed(table, position, tokens, start, cu_seqlens)
        return dropout(x, self.config.dropout, self.training)

    def placed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`embed` before dropout: scaled embeddings plus positions."""
        x = table(tokens) * self.embedding_scale
        if cu_seqlens is None:
            added = position.embed(start, tokens.shape[-1])
        else:
            lengths = cu_seqlens.diff()
            added = position.embed(0, int(lengths.max()))
            if added is not None:
                first = torch.repeat_interleave(cu_seqlens[:-1], lengths)
                added = added[torch.arange(tokens.shape[-1], device=tokens.device) - first]
        if added is not None and added.shape != x.shape[-2:]:
            raise UserError(
                f"position encoding {type(position).__name__}: embed gives {tuple(added.shape)}; it has to be the length "
                f"and the model's size, {tuple(x.shape[-2:])}"
            )
        return x if added is None else x + added.to(x.dtype)

    def embed_next(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, state: PrefixState
    ) -> Tensor:
        """The next token of (B, K) hypotheses to (B, K, C), with which a step of `state` begins."""
        x_N1C = self.embed(table, position, tokens.reshape(-1, 1), state.length)
        state.advance(tokens)
        return x_N1C.view(*tokens.shape, -1)

    @staticmethod
    def where(position: PositionEncoding, layer: int) -> Where:
        """What self-attention of a layer is told of positions."""
        where: Where = {"position": schemes_of(position, layer)}
        if position.score_scale is not None:
            where["scale"] = position.score_scale
        return where

    def checkpoint_activations(self) -> None:
        self.keeps_activations = False

    def _run(self, layer: nn.Module, *args: Any) -> Tensor:
        if self.keeps_activations or not self.training:
            return layer(*args)
        return checkpoint(layer, *args, use_reentrant=False)  # type: ignore[no-any-return]

    def describe(self, device: torch.device, packing: bool = False) -> list[str]:
        dropout = self.config.attention_dropout > 0
        chosen = {}
        for name, schemes in self.attentions().items():
            kinds = frozenset(type(scheme).__name__ for scheme in schemes)
            call = AttentionCall(device.type, kinds, True, dropout, packing)
            chosen[name] = self.backend.choose(call)
        names = sorted(set(chosen.values()))
        told = names[0] if len(names) == 1 else ", ".join(f"{n} {b}" for n, b in chosen.items())
        return [f"attention: {told} (positions: {self.config.position.name})"]


@torch.no_grad()
def scale_by_depth(layers: nn.ModuleList) -> None:
    """Divide the weight matrices of layer l, counted from 1, by √l (Zhang et al. 2019, section 4)."""
    for depth, layer in enumerate(layers, 1):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight /= math.sqrt(depth)
