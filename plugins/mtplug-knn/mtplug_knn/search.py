"""Beam search over a model mixed with a datastore."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mtplug
from mtplug.architectures.base import Model
from mtplug.errors import UserError
from mtplug.search import BeamConfig, BeamSearch, Ensemble
from mtplug.tasks import Task
from mtplug_knn.datastore import Datastore, existing, fingerprint
from mtplug_knn.model import NearestNeighbours

MTPLUG_API = {"search_strategies": 1}


@dataclass
class KnnConfig(BeamConfig):
    """Beam search with the nearest neighbours of each state (kNN-MT, Khandelwal et al. 2021)."""

    datastore: str = ""
    """folder that `python -m mtplug_knn` made with this run"""
    knn_weight: float = 0.7
    """share of the neighbours in the probability of a token (λ), at least 0 and below 1; 0.8 and 0.7
    are the paper's for other domains"""
    neighbours: int = 64
    """that are asked at each step (k)"""
    temperature: float = 10.0
    """what squared distances are divided by; greater: far neighbours count more"""
    probes: int = 32
    """lists of the index that are looked at; for an index with inverted lists (IVF)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.knn_weight < 1:
            raise ValueError(f"knn_weight {self.knn_weight} is not at least 0 and below 1")
        if self.neighbours < 1 or self.temperature <= 0:
            raise ValueError("neighbours must be at least 1, temperature above 0")


class KnnSearch(BeamSearch):
    """Beam search; what differs is the model that it searches."""

    def __init__(self, config: KnnConfig):
        super().__init__(config)
        self.knn = config

    @staticmethod
    def check_files(config: Any) -> None:
        BeamSearch.check_files(config)
        if not config.datastore:
            raise UserError(
                "search.datastore: no folder is given; make one with python -m mtplug_knn"
            )
        existing(Path(config.datastore))

    def searched_model(self, model: Model, task: Task) -> Model:
        """The mixture, to whose log-probabilities those of a language model are added.

        Raises:
            UserError: the datastore was made with other weights.
        """
        c = self.knn
        made = (existing(Path(c.datastore)) / "datastore.json").stat()
        datastore = _opened(c.datastore, c.probes, (made.st_ino, made.st_mtime_ns))
        fitting = [datastore.meta.get(key) for key in ("fingerprint", "fingerprint_bf16")]
        if _known(model) not in fitting:
            several = isinstance(model, Ensemble)
            right = "the same ensemble by --checkpoint NAME,NAME" if several else "this checkpoint"
            held = next(model.parameters()).dtype
            if (
                held == torch.bfloat16 and not fitting[1]
            ):  # an earlier version's does not tell of bf16
                right += ", or translate with --precision fp32"
            raise UserError(
                f"search.datastore: {c.datastore} was made with other weights "
                f"({datastore.meta.get('run', 'unknown')}); make one of {right}"
            )
        mixed = NearestNeighbours(model, datastore, c.neighbours, c.temperature, c.knn_weight)
        return super().searched_model(mixed, task)


@functools.lru_cache(maxsize=8)
def _opened(folder: str, probes: int, made: tuple[int, int]) -> Datastore:
    """Of what was `made` there: a datastore that was made anew in the same process is read anew."""
    return Datastore(folder, probes)


_FINGERPRINTS: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()


def _known(model: Model) -> str:
    """The fingerprint, taken once for a model: it decodes many batches, and must not change meanwhile."""
    if model not in _FINGERPRINTS:
        _FINGERPRINTS[model] = fingerprint(model)
    return _FINGERPRINTS[model]


@mtplug.hookimpl
def register_search_strategies(register):
    register("knn", KnnSearch, KnnConfig)
