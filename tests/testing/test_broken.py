"""A check finds what it is there for: for each promise of each kind, a component that breaks only that one."""

import re
from pathlib import Path

import pytest

from mtplug import plugins, testing
from mtplug.contracts import CONTRACTS
from mtplug.registry import singular


@pytest.fixture(scope="module", autouse=True)
def broken():
    """The components of broken.py, in this process's host."""
    before = plugins._current
    plugins._current = plugins.PluginHost(files=[Path(__file__).with_name("broken.py")])
    yield
    plugins._current = before


# `config` is checked by one piece of code for all kinds; search strategies add to it.
PROMISES = [
    (kind, promise)
    for kind, contract in CONTRACTS.items()
    for promise in contract.promises
    if promise != "config" or kind in ("architectures", "search_strategies")
]


def check(kind, name, **more):
    getattr(testing, f"check_{singular(kind)}")(name, *SETTINGS.get(kind, ()), **more)


SETTINGS = {"search_strategies": ("beam=3", "nbest=3")}


@pytest.mark.parametrize(("kind", "promise"), PROMISES)
def test_broken_promise_is_found_and_named(kind, promise, mtplug_run):
    more = {"run": mtplug_run} if kind == "exporters" else {}
    sentence = re.escape(CONTRACTS[kind].promises[promise])
    said = f"{singular(kind)} '{promise}' breaks '{promise}': {sentence}.*docs/plugins.md#{kind}"
    with pytest.raises(testing.ContractBroken, match=re.compile(said, re.S)):
        check(kind, promise, **more)


def test_sound_architecture_passes():
    check("architectures", "sound")
