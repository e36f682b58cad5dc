"""`architecture.attention.backend` as a component: checked where it is named, recorded, missed."""

import json

import pytest

import mtplug
from mtplug import plugins, testing
from mtplug.config import load_config
from mtplug.nn.attention import Attend, AttentionCall
from mtplug.plugins import PluginHost

PLUGIN = """
import mtplug
from mtplug.nn.backends import ReferenceAttention

@mtplug.hookimpl
def register_attention_backends(register):
    register("mine", lambda config: ReferenceAttention())
"""


@pytest.fixture
def mine(tmp_path):
    """The file of a plugin with a backend, which is one of this process."""
    before = plugins._current
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    plugins._current = PluginHost(files=[file])
    yield file
    plugins._current = before


def test_a_name_that_nobody_has_is_told_with_its_place(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("architecture:\n  attention: {backend: refrence}\n")
    with pytest.raises(
        mtplug.UserError,
        match=r"run\.yaml:2: architecture\.attention\.backend: unknown .*did you mean 'reference'",
    ):
        load_config(file)
    with pytest.raises(
        mtplug.UserError, match=r"^command line: architecture\.attention\.backend: unknown"
    ):
        load_config(None, ["architecture.attention.backend=trton"])
    assert load_config(None, ["architecture.attention.backend=auto"])


def test_its_plugin_is_recorded_and_a_run_without_it_says_what_is_missing(mine, tmp_path):
    """The plugin was recorded nowhere, and the run could not be read without a word why."""
    run = testing.train(tmp_path, "architecture.attention.backend=mine", updates=2)
    for file in (run / "environment.json", run / "checkpoints" / "last" / "state.json"):
        (own,) = (p for p in json.loads(file.read_text())["plugins"] if p["name"] == "mine")
        assert own["components"] == {"attention_backends": ["mine"]}
    assert mtplug.load(run, device="cpu").translate(["ka"])
    plugins._current = PluginHost()
    with pytest.raises(mtplug.UserError, match=r"made with a plugin file: add --plugin .*mine\.py"):
        mtplug.load(run, device="cpu")


def test_one_that_cannot_compute_there_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mtplug.nn.backends.SdpaAttention.why_not", lambda self, call: f"not on a {call.device}"
    )
    settings = (tmp_path, "architecture.attention.backend=sdpa")
    with pytest.raises(mtplug.UserError, match=r"backend=sdpa: not on a cpu; use auto"):
        testing.train(*settings, updates=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("made", "why"), [("None", "a NoneType is no AttentionBackend"), ("1 / 0", "division by zero")]
)
def test_one_that_cannot_be_made_is_left_out_unless_it_is_asked_for(made, why, tmp_path):
    file = tmp_path / "odd.py"
    file.write_text(PLUGIN.replace("ReferenceAttention())", f"{made})"))
    plugins._current = PluginHost(files=[file])
    with pytest.warns(RuntimeWarning, match=f"backend 'mine' of .*odd.* is left out: {why}"):
        auto = Attend("auto")
    assert auto.choose(AttentionCall("cpu")) == "sdpa"
    with pytest.raises((TypeError, ZeroDivisionError), match=why):
        Attend("mine")
