"""A check finds what it is there for: for each promise of each kind, a component that breaks only that one."""

import re
from pathlib import Path

import pytest

from mtplug import plugins, testing
from mtplug.contracts import CONTRACTS
from mtplug.nn.attention import Attend, AttentionCall
from mtplug.registry import singular


@pytest.fixture(scope="module", autouse=True)
def broken():
    """The components of broken.py and wrong.py, in this process's host."""
    before = plugins._current
    plugins._current = plugins.PluginHost(
        files=[Path(__file__).with_name(f"{name}.py") for name in ("broken", "wrong")]
    )
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


@pytest.mark.parametrize("kind", CONTRACTS)
def test_factory_of_other_arguments_is_told_what_it_is_called_with(kind):
    more = {"run": Path("none")} if kind == "exporters" else {}
    said = rf"breaks 'factory': .*takes 0 positional.*docs/plugins.md#{kind}"
    with pytest.raises(testing.ContractBroken, match=re.compile(said, re.S)):
        getattr(testing, f"check_{singular(kind)}")("takes_nothing", **more)


@pytest.mark.parametrize(
    "kind",
    [
        "architectures",
        "tasks",
        "position_encodings",
        "attention_backends",
        "corpora",
        "metrics",
        "trackers",
    ],
)
def test_component_of_another_class_is_told_which_is_right(kind):
    said = "breaks 'factory': .* returns a `.*it returned a dict"
    with pytest.raises(testing.ContractBroken, match=re.compile(said, re.S)):
        getattr(testing, f"check_{singular(kind)}")("of_another_class")


def test_parameter_that_is_multiplied_by_zero_is_found():
    with pytest.raises(testing.ContractBroken, match="the gradient of dead is zero throughout"):
        check("architectures", "zeroed")


def test_attention_backend_that_cannot_be_made_is_left_out_of_auto():
    with pytest.warns(RuntimeWarning, match="'takes_nothing' of file wrong.py:wrong is left out"):
        auto = Attend("auto")
    assert auto.choose(AttentionCall("cpu")) == "sdpa"
    with pytest.raises(TypeError):
        Attend("takes_nothing")


def test_sound_architecture_passes():
    check("architectures", "sound")
