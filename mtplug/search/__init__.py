"""Decoding strategies: the kind `search_strategies`."""

from mtplug.search.beam import BeamConfig, BeamSearch, Hypothesis, SearchStrategy

__all__ = ["BeamConfig", "BeamSearch", "Hypothesis", "SearchStrategy"]
