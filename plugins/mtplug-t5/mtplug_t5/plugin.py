"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_t5.exporter import T5Exporter, T5Format
from mtplug_t5.model import T5, T5Config

MTPLUG_API = {"architectures": 1, "exporters": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("t5", T5, T5Config)


@mtplug.hookimpl
def register_exporters(register):
    register("t5", T5Exporter, T5Format)
