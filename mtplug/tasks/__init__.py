"""What is learnt from which data: the kind `tasks`."""

from mtplug.tasks.translation import Task, Translation, TranslationConfig

__all__ = ["Task", "Translation", "TranslationConfig"]
