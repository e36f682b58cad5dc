"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_maskpredict.criterion import Cmlm, CmlmConfig
from mtplug_maskpredict.model import CmlmTransformer, CmlmTransformerConfig
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
