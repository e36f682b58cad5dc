"""Multi-head attention and what it asks of a backend: the kind `attention_backends`.

Shapes: B batch, H heads, G heads of keys and values, I queries, J keys, D head size, C model size,
N packed sentences.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.errors import UserError
from mtplug.plugins import host


@dataclass(frozen=True)
class AttentionCall:
    """What decides whether a backend can do a call.

    Attributes:
        device: "cpu", "cuda", ...
        schemes: names of the classes of `mtplug_kernels.positions` that take part.
        gradient: whether a backward pass may follow.
        dropout: whether attention weights are dropped.
        packed: whether sentences lie one after another in one row.
    """

    device: str
    schemes: frozenset[str] = frozenset()
    gradient: bool = True
    dropout: bool = False
    packed: bool = False


class AttentionBackend(ABC):
    """Computes softmax attention.

    A backend that cannot do every call says so in `why_not`; one that `auto` shall consider gives
    itself a `rank`.

    Attributes:
        takes_grouped: whether keys and values may have fewer heads G than queries have, each for H / G of
            them in a row; else each is repeated before the call.
    """

    takes_grouped: bool = False

    def __init__(self, config: Any = None):
        self.config = config

    def why_not(self, call: AttentionCall) -> str:
        """The reason why this backend cannot do such a call; empty if it can."""
        return ""

    def rank(self, call: AttentionCall) -> int:
        """`auto` takes the highest rank among those that can; 0: only when asked by name."""
        return 0

    @abstractmethod
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        position: tuple[Any, ...] = (),
        causal: bool = False,
        key_lengths: Tensor | None = None,
        cu_seqlens: tuple[Tensor, Tensor] | None = None,
        query_offset: int = 0,
        scale: float | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """(B, H, I, D), (B, H or G, J, D), (B, H or G, J, D) to (B, H, I, D).

        Args:
            q, k, v: heads before length.
            position: schemes of `mtplug_kernels.positions`, at most one of each class.
            causal: query i sees keys j <= i, i counted from `query_offset`.
            key_lengths: (B,) true numbers of keys; the others are padding.
            cu_seqlens: for packed sentences, B = 1: (N + 1,) starts among the queries, and among
                the keys. Positions start at 0 in each.
            query_offset: position of the first query.
            scale: factor of the dot products; 1/sqrt(D) by default.
            dropout_p: on attention weights.
        """


class Attend:
    """The backend of a name, or for `auto` the best that there is for each kind of call."""

    def __init__(self, name: str):
        known = host().names("attention_backends")
        component = host().component
        wanted = known if name == "auto" else [name]
        components = [component("attention_backends", n) for n in wanted]
        self.name = name
        self.backends: dict[str, AttentionBackend] = {}
        for one in components:
            try:
                made = one.factory(one.config())
                if not isinstance(made, AttentionBackend):
                    raise TypeError(f"a {type(made).__name__} is no AttentionBackend")
                self.backends[one.name] = made
            except Exception as error:
                if name != "auto":
                    raise
                # what nobody asked for must not keep others from working
                said = f"attention backend '{one.name}' of {one.plugin} is left out: {error}"
                warnings.warn(said, RuntimeWarning, stacklevel=2)
        self._chosen: dict[AttentionCall, str] = {}

    def choose(self, call: AttentionCall) -> str:
        """The name of the backend for such calls.

        Raises:
            UserError: the one asked for cannot do them.
        """
        if call not in self._chosen:
            reasons = {name: b.why_not(call) for name, b in self.backends.items()}
            if self.name != "auto" and reasons[self.name]:
                raise UserError(
                    f"architecture.attention.backend={self.name}: {reasons[self.name]}; use auto"
                )
            able = [name for name, reason in reasons.items() if not reason]
            ranked = sorted(able, key=lambda n: (-self.backends[n].rank(call), n))
            if not ranked or (self.name == "auto" and not self.backends[ranked[0]].rank(call)):
                told = "; ".join(f"{n}: {r}" for n, r in reasons.items() if r) or "there is none"
                raise UserError(f"no attention backend can do {call} ({told}){host().left_out()}")
            self._chosen[call] = ranked[0]
        return self._chosen[call]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **where: Any) -> Tensor:
        if isinstance(where.get("query_offset"), Tensor):
            raise TypeError(
                "query_offset must be an int, the same for all sentences, not a tensor; "
                "mtplug_kernels.attention takes one for each"
            )
        call = AttentionCall(
            q.device.type,
            frozenset(type(scheme).__name__ for scheme in where.get("position", ())),
            torch.is_grad_enabled(),
            where.get("dropout_p", 0.0) > 0,
            where.get("cu_seqlens") is not None,
        )
        backend = self.backends[self.choose(call)]
        if not backend.takes_grouped:
            k, v = for_each_query_head(q, k), for_each_query_head(q, v)
        result = backend(q, k, v, **where)
        if getattr(result, "shape", None) != (*q.shape[:3], v.shape[-1]):
            given = (
                tuple(result.shape) if isinstance(result, Tensor) else f"a {type(result).__name__}"
            )
            raise UserError(
                f"attention backend '{self.choose(call)}' gives {given}; it has to be a tensor "
                f"{(*q.shape[:3], v.shape[-1])}, as the queries are"
            )
        return result


def for_each_query_head(q: Tensor, k: Tensor) -> Tensor:
    """Keys, or values, (B, G, J, D) as (B, H, J, D), H the heads of `q`."""
    return k if k.shape[1] == q.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], 1)


class MultiHeadAttention(nn.Module):
    """Projections around an attention backend.

    Args:
        dim: model size C.
        heads: H; must divide `dim`, unless `head_dim` is given.
        dropout: on the attention weights.
        backend: an `AttentionBackend`, or what chooses one.
        kv_heads: G heads of keys and values, each shared by H / G heads of queries (Ainslie et al. 2023);
            0: H.
        head_dim: D, size of a head; 0: C / H.

    Raises:
        ValueError: `heads` does not divide `dim`, or `kv_heads` does not divide `heads`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        backend: Any,
        kv_heads: int = 0,
        head_dim: int = 0,
    ):
        super().__init__()
        kv_heads = kv_heads or heads
        if dim % heads and not head_dim:
            raise ValueError(f"{heads} heads do not divide a model size of {dim}")
        if heads % kv_heads:
            raise ValueError(f"{kv_heads} heads of keys and values do not divide {heads} heads")
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_dim or dim // heads
        self.dropout, self.backend = dropout, backend
        # Each gives keys and values (G, P, D) that all sentences see before their own.
        self.prefixes: list[Callable[[], tuple[Tensor, Tensor]]] = []
        self.q = nn.Linear(dim, heads * self.head_size)
        self.k = nn.Linear(dim, kv_heads * self.head_size)
        self.v = nn.Linear(dim, kv_heads * self.head_size)
        self.out = nn.Linear(heads * self.head_size, dim)
        # The scale of a fused query-key-value projection, as fairseq has it: training at high
        # learning rates depends on it.
        for linear in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(linear.weight, gain=1 / math.sqrt(2))
        nn.init.xavier_uniform_(self.out.weight)
        for linear in (self.q, self.k, self.v, self.out):
            nn.init.zeros_(linear.bias)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, heads · D) to (B, heads, L, D)."""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def join(self, heads: Tensor) -> Tensor:
        """(B, H, I, D) to (B, I, C)."""
        return self.out(heads.transpose(1, 2).flatten(2))

    def queries(self, x: Tensor) -> Tensor:
        """(B, I, C) to (B, H, I, D)."""
        return self.split(self.q(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `attend` needs of the attended side, (B, G, J, D) each; to be kept when decoding."""
        return self.split(self.k(x)), self.split(self.v(x))

    def attend(
        self, x: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend | None = None, **where: Any
    ) -> Tensor:
        """Queries from `x` (B, I, C) over given keys and values, by default by the layer's backend."""
        dropout_p = self.dropout if self.training else 0.0
        for prefix in self.prefixes:
            k, v, where = _with_prefix(*prefix(), k, v, where)
        q = self.queries(x)
        return self.join((backend or self.backend)(q, k, v, dropout_p=dropout_p, **where))

    def forward(self, x: Tensor, attended: Tensor | None = None, **where: Any) -> Tensor:
        """(B, I, C) attending to `attended` (B, J, C), by default to itself."""
        k, v = self.keys_values(x if attended is None else attended)
        return self.attend(x, k, v, **where)


def _with_prefix(
    prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor, where: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Keys and values after (G, P, D) of a prefix, and what the backend is then told.

    Queries move on by P as the keys do, so that relative distances stay as they are and the prefix
    stands before the first position.
    """
    if where.get("cu_seqlens") is not None:
        raise UserError("training.packing: packed sentences cannot have a prefix; set it to false")
    length = prefix_k.shape[1]
    k, v = (
        torch.cat([front.to(own.dtype).expand(len(own), -1, -1, -1), own], 2)
        for front, own in ((prefix_k, k), (prefix_v, v))
    )
    where = {**where, "query_offset": where.get("query_offset", 0) + length}
    if where.get("key_lengths") is not None:
        where["key_lengths"] = where["key_lengths"] + length
    return k, v, where
