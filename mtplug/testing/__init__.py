"""For authors of plugins: a tiny corpus and runs of it, and checks of the contract of each kind."""

from mtplug.testing.tiny import pairs, train, write_corpus

__all__ = ["pairs", "train", "write_corpus"]
