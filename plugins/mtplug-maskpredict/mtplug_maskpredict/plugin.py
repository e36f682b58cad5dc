"""What is registered, and a check before the first update that the parts of a run fit together."""

from __future__ import annotations

import mtplug
from mtplug_maskpredict.criterion import Cmlm, CmlmConfig
from mtplug_maskpredict.model import ONLY, CmlmTransformer, CmlmTransformerConfig
from mtplug_maskpredict.search import MaskPredict, MaskPredictConfig

MTPLUG_API = {"architectures": 1, "criteria": 1, "search_strategies": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("cmlm_transformer", CmlmTransformer, CmlmTransformerConfig)


@mtplug.hookimpl
def register_criteria(register):
    register("cmlm", Cmlm, CmlmConfig)


@mtplug.hookimpl
def register_search_strategies(register):
    register("mask_predict", MaskPredict, MaskPredictConfig)


@mtplug.hookimpl
def on_train_start(trainer):
    """A search that doesn't fit would be found at the first validation, or when the test set is scored: hours later."""
    run, ours = trainer.run, isinstance(trainer.model, CmlmTransformer)
    used = {"search.name": (run.search, run.data.test)}
    if run.validation.translate:
        used["validation.search.name"] = (run.validation.search, run.data.valid)
    for setting, (search, data) in used.items():
        factory = search.component.factory
        fills = isinstance(factory, type) and issubclass(factory, MaskPredict)
        if data and fills != ours:
            wrong = ONLY if ours else "mask_predict goes with architecture.name=cmlm_transformer"
            raise mtplug.StopRun(f"{setting}={search.name}: {wrong}")
