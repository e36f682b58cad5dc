"""Decoding strategies: the kind `search_strategies`."""

from mtplug.search.base import Hypothesis, Request, SearchConfig, SearchStrategy
from mtplug.search.beam import BeamConfig, BeamSearch

__all__ = [
    "BeamConfig",
    "BeamSearch",
    "Hypothesis",
    "Request",
    "SearchConfig",
    "SearchStrategy",
]
