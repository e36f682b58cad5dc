"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_sockeye.exporter import SockeyeFormat, SockeyeImporter
from mtplug_sockeye.model import SockeyeConfig, SockeyeSinusoidal, SockeyeTransformer

MTPLUG_API = {"architectures": 1, "exporters": 1, "position_encodings": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("sockeye", SockeyeTransformer, SockeyeConfig)


@mtplug.hookimpl
def register_position_encodings(register):
    register("sockeye_sinusoidal", SockeyeSinusoidal)


@mtplug.hookimpl
def register_exporters(register):
    register("sockeye", SockeyeImporter, SockeyeFormat)
