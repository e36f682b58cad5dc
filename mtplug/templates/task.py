"""A task: translation into lower-cased text."""

from dataclasses import dataclass

import mtplug
from mtplug.tasks import Translation, TranslationConfig

MTPLUG_API = {"tasks": 1}


@dataclass
class LowercasedConfig(TranslationConfig):
    """Translation into lower-cased text."""


class Lowercased(Translation):
    def transform(self, source, target):
        return source, target.lower()


@mtplug.hookimpl
def register_tasks(register):
    register("NAME", Lowercased, LowercasedConfig)
