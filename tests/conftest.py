"""Shared by all tests: one thread, a cache of their own, a tiny trained run."""

import os
from pathlib import Path

# Read by triton when it is imported, which test modules of any folder may bring about.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not hasattr(torch.optim, "Muon"):  # which mtplug then refuses
        for item in items:
            if "muon" in item.name:
                item.add_marker(pytest.mark.skip(reason="muon needs torch 2.9"))


@pytest.fixture(scope="session", autouse=True)
def cache_of_our_own(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def plugins_of_our_own(monkeypatch):
    """A command that a test calls in this process leaves its --plugin and --block to later ones otherwise."""
    from mtplug import plugins

    monkeypatch.setattr(plugins, "_current", plugins._current)
    for name in ("MTPLUG_BLOCK", "MTPLUG_PLUGIN_FILES"):
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run that has learnt to translate made-up sentences word by word."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_corpus(folder)
    settings = ("training.max_updates=600", "lr_scheduler.name=cosine")
    return tiny.train(folder, "run", *settings)
