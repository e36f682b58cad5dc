"""Run configuration: YAML files and command-line overrides, checked against dataclasses."""

from mtplug.config.build import (
    component_from_overrides,
    explain,
    load_config,
    load_resolved,
    to_plain,
    to_yaml,
)
from mtplug.config.schema import RunConfig

__all__ = [
    "RunConfig",
    "component_from_overrides",
    "explain",
    "load_config",
    "load_resolved",
    "to_plain",
    "to_yaml",
]
