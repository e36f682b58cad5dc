"""A model of each kind, as transformers wrote it and as a run."""

import pytest
from random_models import CODES, original

from mtplug.cli import import_run


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=CODES)
def made(request, transformers, tmp_path_factory):
    """(the kind, its folder, the original model and tokenizer, the run)."""
    there = tmp_path_factory.mktemp(request.param)
    model, tokenizer = original(request.param, transformers, there / "original")
    source, target = CODES[request.param]
    arguments = ["nllb", str(there / "original"), f"source_code={source}", f"target_code={target}"]
    assert import_run.main([*arguments, "--output", str(there / "run"), "--debug"]) == 0
    return request.param, there / "original", model, tokenizer, there / "run"
