"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_opennmt.checkpoint import OpenNmtFormat, OpenNmtImporter
from mtplug_opennmt.eole import EoleFormat, EoleImporter
from mtplug_opennmt.model import OpenNmt, OpenNmtConfig

MTPLUG_API = {"architectures": 1, "exporters": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("opennmt", OpenNmt, OpenNmtConfig)


@mtplug.hookimpl
def register_exporters(register):
    register("opennmt", OpenNmtImporter, OpenNmtFormat)
    register("eole", EoleImporter, EoleFormat)
