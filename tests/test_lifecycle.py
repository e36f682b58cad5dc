"""The runtime promise: a plugin in trouble never takes a run along, unless it asks to."""

import json
import warnings
from pathlib import Path

import pytest

import mtplug
from mtplug import hookspecs, plugins, testing
from mtplug.config import load_config
from mtplug.plugins import PluginHost
from mtplug.training.run import train

HEAD = "import mtplug\n\n@mtplug.hookimpl\n"


@pytest.fixture
def with_plugin(tmp_path):
    """Makes a file of the given text a plugin of this process."""
    before = plugins._current

    def use(text: str, name: str = "odd") -> PluginHost:
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        plugins._current = PluginHost(files=[file])
        return plugins._current

    yield use
    plugins._current = before


def notes(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [e["text"] for e in events if e["event"] == "note"]


@pytest.mark.parametrize(
    "error", ["ValueError('oops')", "SystemExit('oops')", "mtplug.UserError('oops')"]
)
def test_plugins_that_raise_are_reported_once_each_and_the_run_goes_on(
    error, tmp_path, monkeypatch
):
    """One plugin for each hook, so that one which is not called, or ends the run, is missed below."""
    hooks = [name for name in vars(hookspecs) if name.startswith("on_")]
    files = [tmp_path / f"odd_{hook}.py" for hook in hooks]
    for hook, file in zip(hooks, files, strict=True):
        file.write_text(f"{HEAD}def {hook}(trainer):\n    raise {error}\n")
    monkeypatch.setattr(plugins, "_current", PluginHost(files=files))
    run = testing.train(tmp_path)
    assert (run / "checkpoints" / "last").readlink().name == "step-00000004"
    told = notes(run)
    for hook in hooks:
        (note,) = [note for note in told if f"plugin 'odd_{hook}' (file odd_{hook}.py" in note]
        assert f"failed in {hook}" in note and "oops" in note
    assert len(told) == len(hooks) > 4


def test_second_run_of_a_process_is_told_of_the_failure_too(with_plugin, tmp_path):
    with_plugin(f"{HEAD}def on_update_end(trainer):\n    1 / 0\n")
    runs = [testing.train(tmp_path, name=name) for name in ("first", "second")]
    assert [len(notes(run)) for run in runs] == [1, 1]


def test_check_of_hooks_names_the_one_that_raises(with_plugin, tmp_path):
    with_plugin(f"{HEAD}def on_validation_end(trainer):\n    1 / 0\n")
    said = r"plugin 'odd' .*failed in on_validation_end.*\n.*docs/plugins.md#the-life-of-a-run"
    with pytest.raises(testing.ContractBroken, match=said):
        testing.check_hooks(tmp_path)


def test_check_of_hooks_finds_one_that_makes_runs_differ(with_plugin, tmp_path):
    with_plugin(
        f"{HEAD}def on_train_start(trainer):\n"
        "    for parameter in trainer.model.parameters():\n        parameter.data.mul_(1.01)\n"
    )
    said = r"differs after a resume.*\n.*docs/plugins.md#the-life-of-a-run"
    with pytest.raises(testing.ContractBroken, match=said):
        testing.check_hooks(tmp_path)


def test_other_plugins_are_called_after_one_that_raised(tmp_path):
    calls = []
    files = []
    for name in ("a", "b", "c"):
        file = tmp_path / f"{name}.py"
        file.write_text(
            f"{HEAD}def on_train_end(trainer, reason):\n    trainer.append({name!r})\n    1 / 0\n"
        )
        files.append(file)

    class Trainer(list):
        def emit(self, kind, text):
            calls.append(text)

    trainer = Trainer()
    PluginHost(files=files).hook.on_train_end(trainer=trainer, reason="done", later="unknown")
    assert sorted(trainer) == ["a", "b", "c"] and len(calls) == 3


def test_scores_of_a_run_survive_what_a_plugin_does_to_them(with_plugin, tmp_path):
    with_plugin(
        f"{HEAD}def on_validation_end(scores):\n"
        "    scores.clear()\n    scores.update(mine=1.5, words='many')\n"
    )
    run = testing.train(tmp_path, "logging.trackers=[{name: jsonl}, {name: console}]")
    events = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    scores = [e["scores"] for e in events if e["event"] == "validation"]
    assert all({"loss", "mine"} <= set(s) and "words" not in s for s in scores) and scores
    assert notes(run) == ["a plugin's score words='many' is no number: left out"] * len(scores)


def test_plugin_asks_for_the_end_of_training(with_plugin, tmp_path):
    with_plugin(
        f"{HEAD}def on_update_end(trainer, update):\n    trainer.should_stop = 'enough' * (update == 2)\n"
    )
    run = testing.train(tmp_path)
    assert (run / "checkpoints" / "last").readlink().name == "step-00000002"
    assert '"event": "test"' in (run / "metrics.jsonl").read_text()  # as after any training


def test_plugin_ends_the_run_at_once_and_is_named(with_plugin, tmp_path):
    with_plugin(
        f"{HEAD}def on_update_end(trainer, update):\n"
        "    if update == 3:\n        raise mtplug.StopRun('the disk is on fire')\n"
    )
    said = r"plugin 'odd' \(file odd.py .*\) stopped the run in on_update_end: the disk is on fire"
    with pytest.raises(mtplug.StopRun, match=said) as stopped:
        testing.train(tmp_path)
    assert stopped.value.exit_status == 1
    assert (tmp_path / "run" / "checkpoints" / "last").readlink().name == "step-00000002"


def test_hook_of_an_old_name_is_called_and_warned_about(with_plugin, tmp_path, monkeypatch):
    monkeypatch.setitem(hookspecs.RENAMED, "after_update", "on_update_end")
    text = f"{HEAD}def after_update(trainer, update):\n    (trainer.run_dir / 'seen').write_text(str(update))\n"
    with pytest.warns(FutureWarning, match="'odd'.*after_update is called on_update_end now"):
        host = with_plugin(text)
    assert host.plugins["file odd.py:odd"].deprecated == ["after_update"]
    run = testing.train(tmp_path)
    assert (run / "seen").read_text() == "4"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_plugin(text.replace("after_update", "on_update_end"))


def test_wrapper_of_a_hook_is_refused(with_plugin):
    text = "import mtplug\n@mtplug.hookimpl(wrapper=True)\ndef on_train_end(trainer):\n    yield\n"
    with pytest.raises(mtplug.UserError, match="'on_train_end' is a hook wrapper"):
        with_plugin(text)


def test_a_plugin_that_steered_a_run_is_recorded_and_missed_when_it_goes_on(
    with_plugin, tmp_path, capsys
):
    """It was recorded nowhere, and the run went on without it and without a word."""
    with_plugin(HEAD + "def on_update_end(trainer, update, loss):\n    pass\n", "steers")
    run = testing.train(tmp_path, updates=2)
    for file in (run / "environment.json", run / "checkpoints" / "last" / "state.json"):
        (own,) = (p for p in json.loads(file.read_text())["plugins"] if p["name"] == "steers")
        assert own["hooks"] == ["on_update_end"] and own["distribution"] == "file steers.py"
    plugins._current = PluginHost()
    assert mtplug.load(run, device="cpu").translate(["ka"])  # needs none
    with pytest.raises(
        mtplug.UserError, match=r"add --plugin .*steers\.py.*or, to go on without its on_update_end"
    ):
        testing.train(tmp_path, "validation.every_updates=1", updates=4)
    plugins._current = PluginHost(["steers"], [tmp_path / "steers.py"])
    said = []
    config, _ = load_config(run / "config.yaml", ["training.max_updates=4"])
    train(config, said.append)
    assert any("'steers' (file steers.py" in line and "takes no part now" in line for line in said)
