"""Training: the loop, precision, checkpoints and trackers (the kind `trackers`)."""

from mtplug.training.trackers import Tracker

__all__ = ["Tracker"]
