"""pytest fixtures for authors of plugins; there as soon as mtplug is installed (entry point pytest11)."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mtplug_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test of the made-up languages xx and en, and run.yaml.

    Shared by all tests: don't write to it.
    """
    from mtplug.testing.tiny import write_corpus

    return write_corpus(tmp_path_factory.mktemp("mtplug") / "corpus").parent


@pytest.fixture(scope="session")
def mtplug_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learnt to translate the made-up language, in half a minute at most.

    Shared by all tests: don't write to it.
    """
    from mtplug.testing.tiny import train

    settings = ("lr_scheduler.name=cosine", "logging.trackers=[{name: jsonl}]")
    return train(tmp_path_factory.mktemp("mtplug"), *settings, updates=300)
