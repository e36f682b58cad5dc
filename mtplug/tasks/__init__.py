"""What is learnt from which data: the kind `tasks`."""

from mtplug.tasks.base import Task
from mtplug.tasks.translation import Translation, TranslationConfig

__all__ = ["Task", "Translation", "TranslationConfig"]
