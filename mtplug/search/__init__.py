"""Decoding strategies: the kind `search_strategies`; and what else of searching authors of plugins need."""

from mtplug.search.base import Hypothesis, Request, SearchConfig, SearchStrategy
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.combine import Ensemble, same_vocabulary
from mtplug.search.rules import Rules
from mtplug.search.scoring import forced_scores
from mtplug.search.stepwise import Greedy, GreedyConfig, Stepwise
from mtplug.search.wishes import Wishes, WordPattern, read_glossary

__all__ = [
    "BeamConfig",
    "BeamSearch",
    "Ensemble",
    "Greedy",
    "GreedyConfig",
    "Hypothesis",
    "Request",
    "Rules",
    "SearchConfig",
    "SearchStrategy",
    "Stepwise",
    "Wishes",
    "WordPattern",
    "forced_scores",
    "read_glossary",
    "same_vocabulary",
]
