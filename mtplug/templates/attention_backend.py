"""An attention backend: a few queries at a time, which never holds all weights at once."""

import torch

import mtplug
from mtplug.nn.attention import AttentionBackend
from mtplug.nn.backends import ReferenceAttention

MTPLUG_API = {"attention_backends": 1}

ROWS = 64


class ChunkedAttention(AttentionBackend):
    def __init__(self, config):
        self.whole = ReferenceAttention()

    def why_not(self, call):
        return "packed sentences cannot be cut into portions" if call.packed else ""

    def __call__(self, q, k, v, *, query_offset=0, **where):
        # Each query has a softmax of its own, so queries can be taken in any portions.
        parts = [
            self.whole(part, k, v, query_offset=query_offset + number * ROWS, **where)
            for number, part in enumerate(q.split(ROWS, dim=2))
        ]
        return torch.cat(parts, dim=2)


@mtplug.hookimpl
def register_attention_backends(register):
    register("NAME", ChunkedAttention)
