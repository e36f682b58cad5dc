"""What a run leaves behind, and what it does when something is wrong."""

import errno
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mtplug
from mtplug.cli.train import main
from mtplug.errors import UserError
from mtplug.training import checkpoints as ckpt
from mtplug.training.checkpoints import Checkpoints
from mtplug.training.trackers import read_events
from tests import tiny

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"


@pytest.fixture
def folder(tmp_path):
    tiny.write_corpus(tmp_path)
    return tmp_path


def fails(folder, capsys, *overrides, status=2):
    capsys.readouterr()
    code = main(tiny.arguments(folder, "run", "training.max_updates=8", *overrides))
    error = capsys.readouterr().err.splitlines()
    assert code == status, error
    assert not any("Traceback" in line for line in error)
    return error[-1]


def test_run_leaves_what_the_documentation_says(tiny_run):
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "tokenizer/joint.model",
                 "data/train-0/store.json", "checkpoints/last/state.json",
                 "checkpoints/best/model.safetensors"):  # fmt: skip
        assert (tiny_run / name).is_file(), name
    environment = json.loads((tiny_run / "environment.json").read_text())
    assert {p["distribution"] for p in environment["plugins"]} == {"mtplug"}
    assert len(environment["data"]) == 4
    assert list((tiny_run / "samples").glob("valid-step-*.txt"))
    kinds = {e["event"] for e in read_events(tiny_run / "metrics.jsonl")}
    assert kinds >= {"train", "validation", "checkpoint", "end", "test"}


def test_loss_falls_and_validation_scores_real_translations(tiny_run):
    events = [e for e in read_events(tiny_run / "metrics.jsonl") if e["event"] == "validation"]
    assert events[-1]["scores"]["loss"] < 0.5 * events[0]["scores"]["loss"]
    assert events[-1]["scores"]["bleu"] > 80
    test = [e for e in read_events(tiny_run / "metrics.jsonl") if e["event"] == "test"]
    assert "|tok:13a|" in test[0]["texts"][0]


def test_curves_are_drawn(folder):
    pytest.importorskip("matplotlib")
    run = tiny.train(folder, "run", "training.max_updates=10", "validation.every_updates=5",
                     "logging.trackers=[{name: jsonl}, {name: curves}]")  # fmt: skip
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_average_is_the_mean_of_the_last_checkpoints(folder):
    run = tiny.train(folder, "run", "training.max_updates=12", "checkpoint.every_updates=3",
                     "checkpoint.average_last=3", "checkpoint.keep_last=1")  # fmt: skip
    names = json.loads((run / "checkpoints/averaged/state.json").read_text())["sources"]
    assert names == ["step-00000006", "step-00000009", "step-00000012"]
    parts = [load_file(run / "checkpoints" / n / "model.safetensors") for n in names]
    for key, tensor in load_file(run / "checkpoints/averaged/model.safetensors").items():
        torch.testing.assert_close(tensor, torch.stack([p[key] for p in parts]).mean(0))


def test_checkpoints_of_other_models_have_no_average(folder):
    made = Checkpoints(folder)
    first, *others = (
        made.save(f"step-{n}", {name: torch.ones(size) for name, size in sizes.items()}, {})
        for n, sizes in enumerate(({"a": 2, "b": 2}, {"a": 2}, {"a": 2, "b": 1}))
    )
    for other in others:
        with pytest.raises(UserError, match="another model"):
            ckpt.average([first, other])


def test_prolonged_run_scores_its_new_average(folder):
    def scored(updates):
        run = tiny.train(folder, "run", f"training.max_updates={updates}", "checkpoint.every_updates=3",
                         "checkpoint.average_last=2", "data.valid=null")  # fmt: skip
        events = read_events(run / "metrics.jsonl")
        return [e["sources"] for e in events if e["event"] == "test"]

    first, second = (["step-00000003", "step-00000006"], ["step-00000009", "step-00000012"])
    assert scored(6) == [first]
    assert scored(12) == scored(12) == [first, second]


def test_prolonged_run_keeps_its_best_single_checkpoint(folder):
    """While `best` leads to an average, nothing but the run's resumption protects what was best before."""
    settings = ("validation.every_updates=3", "optimizer.lr=1e-9", "checkpoint.keep_last=2",
                "checkpoint.average_last=2", "data.test=null")  # fmt: skip
    run = tiny.train(folder, "run", "training.max_updates=9", *settings)
    checkpoints = Checkpoints(run / "checkpoints")
    assert (checkpoints.folder / "best").resolve().name == "step-00000003"
    checkpoints.point("best", "averaged")  # as if that had been better
    tiny.train(folder, "run", "training.max_updates=18", *settings)
    assert (checkpoints.folder / "best").resolve().name == "step-00000003"


def test_accumulation_equals_one_large_batch(folder):
    """Two batches of one update against the same sentences in a single batch, without dropout."""
    grads = []
    for size, accumulate in ((100_000, 1), (512, 10_000)):
        overrides = tiny.arguments(folder, f"size-{size}", f"training.max_tokens={size}",
                                   f"training.accumulate={accumulate}", "training.clip_norm=0",
                                   "architecture.dropout=0", "optimizer.lr=0",
                                   "logging.trackers=null")[1:]  # fmt: skip
        trainer = tiny.trainer(folder, *overrides)
        group = next(trainer.groups_of_batches())
        assert (len(group) == 1) == (accumulate == 1)
        trainer.step(group)
        grads.append([p.grad.clone() for p in trainer.updater.parameters])
    for one, many in zip(*grads, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-6)


def test_best_survives_pruning(folder):
    run = tiny.train(folder, "run", "training.max_updates=30", "validation.every_updates=3",
                     "optimizer.lr=1e-9", "checkpoint.keep_last=2", "data.test=null")  # fmt: skip
    steps = [p.name for p in Checkpoints(run / "checkpoints").steps()]
    assert steps == ["step-00000003", "step-00000027", "step-00000030"]
    assert (run / "checkpoints/best").resolve().name == "step-00000003"


def test_last_update_is_validated_and_best_leads_to_a_better_average(folder):
    run = tiny.train(folder, "run", "training.max_updates=100", "validation.every_updates=30",
                     "checkpoint.average_last=2", "data.test=null")  # fmt: skip
    events = read_events(run / "metrics.jsonl")
    assert [e["update"] for e in events if e["event"] == "validation"] == [30, 60, 90, 100]
    (note,) = [e for e in events if e["event"] == "note"]
    best = max(e["scores"]["bleu"] for e in events if e["event"] == "validation")
    better = note["scores"]["bleu"] > best
    leads_to = (run / "checkpoints" / "best").resolve().name
    assert (leads_to == "averaged") == better
    tiny.train(folder, "run", "training.max_updates=100", "validation.every_updates=30",
               "checkpoint.average_last=2", "data.test=null")  # fmt: skip
    assert (run / "checkpoints" / "best").resolve().name == leads_to


def test_without_validation_data_the_last_checkpoint_is_the_best(folder):
    run = tiny.train(folder, "run", "training.max_updates=5", "data.valid=null", "data.test=null")
    assert mtplug.load(run).translate(["ka"])


def test_signal_at_a_scheduled_checkpoint_keeps_it_scheduled(folder):
    plugin = folder / "stopper.py"
    plugin.write_text(
        "import mtplug, os, signal\n@mtplug.hookimpl\ndef on_checkpoint_saved(trainer, path):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    overrides = ("checkpoint.every_updates=3", "data.test=null")
    done = tiny.called("train", *tiny.arguments(folder, "run", *overrides), "--plugin", plugin)
    assert done.returncode == 143
    state = json.loads((folder / "run/checkpoints/last/state.json").read_text())
    assert (state["update"], state["scheduled"]) == (3, True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_checkpoints_are_averaged_ends_the_command(folder, monkeypatch, signum):
    """It was ignored there, which may take minutes. The same command then makes the average."""
    options = ("checkpoint.every_updates=2", "checkpoint.average_last=2", "training.max_updates=4")
    average = ckpt.average

    def interrupted(paths):
        found = average(paths)
        os.kill(os.getpid(), signum)
        return found

    monkeypatch.setattr(ckpt, "average", interrupted)
    line = tiny.arguments(folder, "run", *options)
    assert main(line) == 128 + signum
    assert not (folder / "run/checkpoints/averaged").exists()
    assert (folder / "run/checkpoints/last").resolve().name == "step-00000004"
    monkeypatch.setattr(ckpt, "average", average)
    assert main(line) == 0
    whole = tiny.train(folder, "whole", *options)
    one, two = (
        load_file(run / "checkpoints/averaged/model.safetensors") for run in (folder / "run", whole)
    )
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_plugin_hooks_watch_and_stop_a_run(folder):
    plugin = folder / "watcher.py"
    plugin.write_text(
        "import mtplug\nSEEN = []\n"
        "@mtplug.hookimpl\ndef on_update_end(trainer, update):\n"
        "    SEEN.append(update)\n"
        "    if update == 7: trainer.should_stop = 'seven is enough'\n"
        "@mtplug.hookimpl\ndef on_validation_end(scores):\n"
        "    scores.update(loss=-1.0, mine=2.0)\n"
        "@mtplug.hookimpl\ndef on_train_end(trainer, reason):\n"
        "    (trainer.run_dir / 'seen.txt').write_text(f'{SEEN} {reason}')\n"
    )
    done = tiny.called("train", *tiny.arguments(folder, "run"), "--plugin", plugin)
    assert done.returncode == 0, done.stderr
    expected = "[1, 2, 3, 4, 5, 6, 7] seven is enough"
    assert (folder / "run" / "seen.txt").read_text() == expected
    events = read_events(folder / "run" / "metrics.jsonl")
    (scores,) = [e["scores"] for e in events if e["event"] == "validation"]
    assert scores["mine"] == 2 and scores["loss"] > 0  # what is measured, a plugin cannot change


# --- bad input --------------------------------------------------------------------------------


def test_missing_and_empty_files(folder, capsys):
    assert "trian.xx is no file; did you mean 'train.xx'?" in fails(
        folder, capsys, "data.train.source=trian.xx"
    )
    assert "qqqq is no file; that folder holds" in fails(folder, capsys, "data.train.source=qqqq")
    (folder / "empty.xx").touch()
    assert "empty.xx is empty" in fails(folder, capsys, "data.train.source=empty.xx")
    assert "no training corpus" in fails(folder, capsys, "data.train=null")


@pytest.mark.parametrize(("settings", "said"), [
    (["data.train.source=nowhere"], "nowhere is no file"),
    (["data.test.source=nowhere"], "nowhere is no file"),
    (["data.train=null"], "no training corpus"),
    (["criterion={name: ewc, fisher: nowhere}"], "criterion.fisher: nowhere is no file"),
    (["tokenizer.model=nowhere"], "tokenizer.model: nowhere is no run"),
    (["training.init_from=nowhere"], "training.init_from: nowhere is no run"),
    (["training.freeze=nothing.*"], "training.freeze: no parameter of the model is called"),
    (["tokenizer.joint=false", "architecture.tie_embeddings=all"], "needs one vocabulary for both languages"),
    (["architecture.dim=33"], "architecture"),
    (["architecture.attention.backend=tritn"], "did you mean 'triton'"),
    (["search.language_model=nowhere"], "search.language_model: nowhere is no run"),
    (["validation.search.forbidden_file=nowhere"], "search.forbidden_file: nowhere: no such file"),
    (["validation.search.shortlist=5"], "validation.search.shortlist: only translations by a run have one"),
    (["search.terminology=nowhere"], "search.terminology: nowhere: no such file"),
    (["search={name: rerank, reverse: [nowhere]}"], "search.reverse: nowhere is no run"),
    (["data.valid.source=nowhere"], "data.valid.0.source: "),
    (["data.filters.script=0.5"], "data.filters.script: the script of language 'xx' is not known"),
])  # fmt: skip
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_needs_no_work_is_refused_before_any(folder, capsys, settings, said, dry):
    assert said in fails(folder, capsys, *settings, *dry)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_warm_up_that_takes_the_whole_run_is_told_at_its_start(folder, capsys, dry):
    """It trained at a fraction of the rate without a word."""
    line = ["data.test=null", "data.valid=null", *dry]
    for updates, count in ((2, 1), (8, 0)):
        more = (f"training.max_updates={updates}", "lr_scheduler.warmup_updates=4", *line)
        assert main(tiny.arguments(folder, f"run{updates}", *more)) == 0
        told = [one for one in "".join(capsys.readouterr()).splitlines() if "still rises" in one]
        assert len(told) == count


def test_a_dry_run_compares_its_loss_with_a_guess_among_the_targets_words(folder, capsys):
    """It took the smaller of two vocabularies, and rounded a small model's memory to 0.0 GiB."""
    sizes = ["vocab_size: 90", "target_vocab_size: 150", "joint: false", "name: sentencepiece"]
    settings = ("architecture.tie_embeddings=decoder", "data.test=null", "--dry-run")
    assert main(tiny.arguments(folder, "run", f"tokenizer={{{', '.join(sizes)}}}", *settings)) == 0
    told = "".join(capsys.readouterr())
    assert f"a uniform guess has {math.log(150):.2f}" in told
    held = re.search(r"memory: ([\d.]+) MiB", told)
    assert held and float(held[1]) > 0


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_patterns_of_other_weights_are_checked_before_any_work(folder, capsys, dry):
    tiny.train(folder, "base", "training.max_updates=1", "data.test=null")
    for setting, said in (("parameters: nothing.*", "no parameter of the model is called"),
                          ("rename: {nothing.: a.}", "no tensor of the model begins with 'nothing.'")):  # fmt: skip
        source = f"training.init_from={{path: {folder / 'base'}, {setting}}}"
        assert said in fails(folder, capsys, source, *dry)
        assert not (folder / "run").exists()


@pytest.mark.parametrize(("file", "content", "said"), [
    ("environment.json", '{"data": ', "environment.json is damaged (Expecting value"),
    ("environment.json", "null", "environment.json is damaged (expected a dict, got None)"),
    ("environment.json", '{"plugins": [{"name": "x"}]}', "environment.json is damaged (a plugin has no distribution"),
    ("environment.json", '{"plugins": [3]}', "environment.json is damaged (a plugin has no distribution"),
    ("config.yaml", "", "config.yaml is damaged: it has no architecture"),
    ("config.yaml", "task: {name: translation}\n", "config.yaml is damaged: it has no architecture"),
    ("tokenizer/joint.model", "", "joint.model is damaged: it is empty"),
    ("tokenizer/tokenizer.json", '{"a', "tokenizer.json is damaged (Unterminated"),
])  # fmt: skip
def test_damaged_small_files_of_a_run_are_named(folder, capsys, file, content, said):
    """Half of them were reported as errors of Python; an empty configuration was one of all defaults."""
    options = ("tokenizer.model_type=bpe", "tokenizer.vocab_size=30", "data.test=null")
    run = tiny.train(folder, "run", "training.max_updates=1", *options)
    (run / file).write_text(content)
    resumed = fails(folder, capsys, *options)
    assert f"{run}/{file}" in resumed and resumed.startswith("mtplug-train: ")
    if file in ("tokenizer/tokenizer.json", "environment.json"):  # which only training reads
        assert said in resumed
        (run / file).unlink()
        assert main(tiny.arguments(folder, "run", "training.max_updates=1", *options)) == 0
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            mtplug.load(run)


def test_a_run_that_is_past_its_new_end_says_where_it_is(folder, capsys):
    tiny.train(folder, "run", "training.max_updates=8", "data.test=null")
    tiny.train(folder, "run", "training.max_updates=5", "data.test=null")
    assert "training ended: 5 updates are done; the run is at 8 already" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_corpus_of_unequal_sides_is_told_with_both_counts_before_any_work(folder, capsys, dry):
    """A dry run called it ready."""
    with (folder / "train.xx").open("a") as file:
        file.write("ka\n" * 601)
    said = f"{folder}/train.xx has 1,001 lines, {folder}/train.en has 400: both sides"
    assert said in fails(folder, capsys, "data.train.prefix=<bt>", *dry)
    assert not (folder / "run").exists()


def test_invalid_utf8_is_an_error_or_a_counted_skip(folder, capsys):
    with (folder / "train.xx").open("ab") as file:
        file.write(b"\xff\n")
    with (folder / "train.en").open("a") as file:
        file.write("one\n")
    assert "train.xx:401: not valid UTF-8" in fails(folder, capsys)
    capsys.readouterr()
    overrides = ("training.max_updates=2", "data.on_error=skip", "data.test=null")
    assert main(tiny.arguments(folder, "run", *overrides)) == 0
    assert "1 unreadable (skipped)" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["valid", "test"])
def test_what_is_wrong_with_held_out_data_is_told_before_training(folder, capsys, split):
    """A missing test set was told when training had ended."""
    given = (folder / f"{split}.xx").read_text()
    (folder / f"{split}.xx").write_text(given + "ka\n")
    lines = given.count("\n")
    message = fails(folder, capsys)
    assert f"{split}.xx has {lines + 1} lines, {folder}/{split}.en has {lines}: both" in message
    (folder / f"{split}.xx").unlink()
    assert f"{split}.xx is no file; did you mean" in fails(folder, capsys)
    assert not (folder / "run" / "tokenizer").exists()
    assert not list((folder / "run" / "checkpoints").glob("*"))


def test_errors_in_corpora_are_told_as_they_are_while_the_tokenizer_is_trained(folder, capsys):
    """SentencePiece hands an exception of its reader on as one of its own."""
    with open(folder / "train.xx", "ab") as file:
        file.write(b"\xff\n")
    line = (folder / "train.xx").read_bytes().count(b"\n")
    (folder / "train.en").write_text((folder / "train.en").read_text() + "one\n")
    message = fails(folder, capsys, "tokenizer.model_type=bpe")
    assert message.startswith(f"mtplug-train: {folder / 'train.xx'}:{line}: not valid UTF-8")
    assert "SentencePiece" not in message and "tokenizers.py" not in message


def test_pair_beyond_the_limit_names_its_files(folder, capsys):
    with open(folder / "train.xx", "a") as file:
        file.write("ka " * 300 + "\n")
    (folder / "train.en").write_text((folder / "train.en").read_text() + "one\n")
    message = fails(folder, capsys, "data.on_long=error")
    assert f"{folder / 'train.xx'} and {folder / 'train.en'}: pair " in message


def test_vocabulary_too_large(folder, capsys):
    message = fails(folder, capsys, "tokenizer.vocab_size=9000", "tokenizer.model_type=bpe")
    assert "9000 is more than the joint text allows; at most" in message


def test_unknown_device_and_metric(folder, capsys):
    assert "'warp' cannot be used here" in fails(folder, capsys, "training.device=warp")
    assert "not among what validation measures" in fails(
        folder, capsys, "validation.best_metric=meteor"
    )


TYPES = {
    "list": ("list", "[1]"), "number": ("float", "None"), "left_out": ("int", "field(default=3, init=False)"),
    "mixed": ("tuple[int, float]", "(1, 0.5, 2)"), "word": ("int", "'three'"), "thing": ("object", "complex(1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_settings_that_could_not_be_read_again_are_refused_before_the_training(folder, name):
    hint, default = TYPES[name]
    if default == "[1]":
        default = "field(default_factory=lambda: [1])"
    plugin = folder / f"typed_{name}.py"
    plugin.write_text(
        "from dataclasses import dataclass, field\nimport mtplug\n"
        "from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig\n"
        f"@dataclass\nclass Config(LabelSmoothedCrossEntropyConfig):\n    odd: {hint} = {default}\n"
        "@mtplug.hookimpl\ndef register_criteria(register):\n"
        f"    register('typed', LabelSmoothedCrossEntropy, Config)\n"
    )
    done = tiny.called(
        "train", *tiny.arguments(folder, name, "criterion.name=typed"), "--plugin", plugin
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "config.yaml could not be read again" in line and "docs/plugins.md" in line
    assert not (folder / name / "checkpoints").exists()


TRACKER = """import mtplug
from mtplug.training.trackers import Tracker
class Down(Tracker):
    def __init__(self, config, run_dir): pass
    def start(self, update, max_updates): pass
    def event(self, kind, values):
        if kind == "validation": raise ConnectionError("server gone")
    def close(self): pass
@mtplug.hookimpl
def register_trackers(register): register("down", Down)
"""


def test_a_tracker_of_a_plugin_that_fails_is_left_out(folder):
    plugin = folder / "down.py"
    plugin.write_text(TRACKER)
    trackers = "logging.trackers=[{name: jsonl},{name: down}]"
    options = ("training.max_updates=6", "validation.every_updates=3", "data.test=null", trackers)
    tiny.train(folder, "run", *options, f"--plugin={plugin}")
    notes = [e["text"] for e in read_events(folder / "run/metrics.jsonl") if e["event"] == "note"]
    assert len(notes) == 1 and "tracker Down" in notes[0]
    assert "ConnectionError: server gone (down.py:7)" in notes[0]
    assert Checkpoints(folder / "run" / "checkpoints").steps()[-1].name == "step-00000006"


def test_a_tracker_of_a_plugin_that_cannot_close_fails_no_run(folder):
    plugin = folder / "stuck.py"
    text = TRACKER.replace('if kind == "validation": raise ConnectionError("server gone")', "pass")
    plugin.write_text(text.replace("def close(self): pass", "def close(self): 1 / 0"))
    trackers = "logging.trackers=[{name: jsonl},{name: down}]"
    options = ("training.max_updates=3", "data.test=null", trackers)
    tiny.train(folder, "stuck", *options, f"--plugin={plugin}")
    notes = [e["text"] for e in read_events(folder / "stuck/metrics.jsonl") if e["event"] == "note"]
    assert len(notes) == 1 and "failed at 'close'" in notes[0] and "ZeroDivisionError" in notes[0]


def test_a_tracker_that_only_looks_like_one_fails_no_run(folder, capsys):
    plugin = folder / "duck.py"
    text = TRACKER.replace('if kind == "validation": raise ConnectionError("server gone")', "pass")
    text = text.replace("Down(Tracker)", "Down")
    plugin.write_text(text.replace("def close(self): pass", "def close(self): 1 / 0"))
    trackers = "logging.trackers=[{name: jsonl},{name: console},{name: down}]"
    options = ("training.max_updates=3", "data.test=null", trackers)
    tiny.train(folder, "run", *options, f"--plugin={plugin}")
    said = capsys.readouterr()
    assert "tracker Down" in said.err and "failed at 'close'" in said.err


def test_a_page_that_cannot_be_drawn_ends_no_training(folder, monkeypatch):
    """It did, of trackers whose module begins with `mtplug.`."""
    monkeypatch.setattr("mtplug.training.report.page", lambda *given: 1 / 0)
    trackers = "logging.trackers=[jsonl, report]"
    tiny.train(folder, "undrawn", "training.max_updates=3", "data.test=null", trackers)
    events = read_events(folder / "undrawn/metrics.jsonl")
    (note,) = [e["text"] for e in events if e["event"] == "note"]
    assert "tracker Report" in note and "goes on without it: ZeroDivisionError" in note
    assert events[-1]["event"] == "end"


def test_an_essential_tracker_that_fails_ends_the_run(folder):
    plugin = folder / "essential.py"
    plugin.write_text(TRACKER.replace("(Tracker):", "(Tracker):\n    essential = True"))
    options = ("training.max_updates=3", "data.test=null", "logging.trackers=[down, jsonl]")
    with pytest.raises(ConnectionError, match="server gone"):
        tiny.train(folder, "essential", *options, f"--plugin={plugin}")


def test_nothing_is_told_to_a_tracker_that_was_closed(folder):
    """What the second one said at its end went to the first one, whose file was closed."""
    plugin = folder / "late.py"
    plugin.write_text(
        "import mtplug\nfrom mtplug.training.trackers import Tracker\nclass File(Tracker):\n"
        "    def start(self, update, max_updates): self.file = (self.run_dir / 'told.txt').open('w')\n"
        "    def event(self, kind, values): self.file.write(f'{kind}\\n')\n"
        "    def close(self): self.file.close()\n"
        "class Fails(Tracker):\n    def close(self): 1 / 0\n"
        "@mtplug.hookimpl\ndef register_trackers(register):\n"
        "    register('file', File)\n    register('fails', Fails)\n"
    )
    options = ("training.max_updates=3", "data.test=null", f"--plugin={plugin}")
    for order, heard in (("jsonl, file, fails", True), ("fails, file, jsonl", False)):
        run = tiny.train(folder, "late", *options, f"logging.trackers=[{order}]")
        notes = [e["text"] for e in read_events(run / "metrics.jsonl") if e["event"] == "note"]
        assert len(notes) == 1 and "tracker Fails" in notes[0]
        assert ("note" in (run / "told.txt").read_text().split()) == heard
        shutil.rmtree(run)


def test_a_prolonged_run_has_not_ended(folder):
    tiny.train(folder, "longer", "training.max_updates=3", "data.test=null")
    tiny.train(folder, "longer", "training.max_updates=6", "data.test=null")
    ends = [e for e in read_events(folder / "longer/metrics.jsonl") if e["event"] == "end"]
    assert [e["update"] for e in ends] == [6]


def test_a_value_that_is_no_number_is_beaten_by_any(folder):
    validation = tiny.trainer(folder, *tiny.arguments(folder, "value")[1:]).validation
    key, nan = validation.key, float("nan")
    assert validation.better({key: nan}, None) and validation.better({key: 0.2}, nan)
    assert not validation.better({key: nan}, 0.2) and not validation.better({key: nan}, nan)


def test_tests_are_scored_anew_with_another_search(folder):
    settings = ("training.max_updates=3",)
    for search in ("search.beam=2", "search.beam=2", "search.beam=1"):
        tiny.train(folder, "scored", *settings, search)
    events = [e for e in read_events(folder / "scored/metrics.jsonl") if e["event"] == "test"]
    assert [e["search"]["beam"] for e in events] == [2, 1]


def test_a_metric_that_fails_is_named_and_costs_no_updates(folder):
    plugin = folder / "rr.py"
    plugin.write_text(
        "import mtplug\nfrom mtplug.evaluation import Metric\nclass R(Metric):\n    label = 'rr'\n"
        "    def score(self, hypotheses, references): return 1 / 0\n"
        "@mtplug.hookimpl\ndef register_metrics(register): register('rr', lambda config, languages: R())\n"
    )
    options = ("training.max_updates=6", "validation.every_updates=3", "data.test=null")
    metrics = "validation.metrics=[{name: bleu},{name: rr}]"
    done = tiny.called(
        "train", *tiny.arguments(folder, "run", *options, metrics), "--plugin", plugin
    )
    assert done.returncode == 1
    assert "metric rr (" in done.stderr and "ZeroDivisionError" in done.stderr.splitlines()[-1]
    assert Checkpoints(folder / "run" / "checkpoints").steps()[-1].name == "step-00000003"
    plugin.write_text(plugin.read_text().replace("return 1 / 0", "return Score('rr', 1.0, 'r', 'r')")
                      .replace("import Metric", "import Metric, Score"))  # fmt: skip
    tiny.train(folder, "run", *options, metrics, f"--plugin={plugin}")
    events = read_events(folder / "run" / "metrics.jsonl")
    assert [e["update"] for e in events if e["event"] == "validation"] == [3, 6]


CRITERION = """
from dataclasses import dataclass
import mtplug
from mtplug.criteria.cross_entropy import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
@dataclass
class Config(LabelSmoothedCrossEntropyConfig):
    fails: bool = False
def build(config, task):
    if config.fails:
        raise ValueError("no such weight")
    return LabelSmoothedCrossEntropy(config, task)
@mtplug.hookimpl
def register_criteria(register):
    register("own", build, Config)
"""


def test_a_run_translates_without_the_plugins_that_only_training_needs(folder):
    plugin = folder / "own.py"
    plugin.write_text(CRITERION)
    options = ("training.max_updates=3", "data.test=null", "criterion.name=own")
    line = tiny.arguments(folder, "run", *options)
    assert tiny.called("train", *line, "--plugin", plugin).returncode == 0
    run = folder / "run"
    environment = json.loads((run / "environment.json").read_text())
    (own,) = (p for p in environment["plugins"] if p["distribution"] != "mtplug")
    assert own["components"] == {"criteria": ["own"]}
    assert tiny.command("translate", run, input="ka lo\n").returncode == 0
    for given in (line, [run / "config.yaml"]):  # to go on, it is needed
        done = tiny.called("train", *given)
        assert done.returncode == 2
        assert f"add --plugin {run}/plugins/own.py" in done.stderr
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("name: transformer", "name: own"))
    done = tiny.called("translate", run, input="ka lo\n")
    assert done.returncode == 2 and "unknown architecture 'own'" in done.stderr


LOOKS = CRITERION.replace(
    "def build(",
    """
class Looks(LabelSmoothedCrossEntropy):
    seen = None
    def fit(self, batches):
        self.seen = [(batch.ids.tolist(), batch.source_tokens.sum().item()) for batch in batches]
        print("looked", hash(str(self.seen)), sum(len(ids) for ids, _ in self.seen))
    def __call__(self, model, batch):
        assert self.seen
        return super().__call__(model, batch)
def build(""",
).replace("return LabelSmoothedCrossEntropy(", "return Looks(")


def test_a_criterion_looks_at_the_same_batches_whenever_its_run_starts(folder, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    plugin = folder / "looks.py"
    plugin.write_text(LOOKS)
    settings = ("criterion.name=own", "data.test=null", "training.max_epochs=3")
    told = []
    for updates in ("3", "5"):  # the second time from within an epoch
        line = tiny.arguments(folder, "run", *settings, f"training.max_updates={updates}")
        done = tiny.called("train", *line, "--plugin", plugin)
        assert done.returncode == 0, done.stderr
        assert "own: looked at training data for" in done.stderr
        told += [row for row in done.stdout.splitlines() if row.startswith("looked ")]
    dry = tiny.called("train", *line, "--plugin", plugin, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert told[0] == told[1] and told[0].endswith(" 400")


def test_an_unforeseen_error_names_the_plugin_that_it_comes_from(folder):
    plugin = folder / "own.py"
    plugin.write_text(CRITERION)
    line = tiny.arguments(folder, "run", "criterion={name: own, fails: true}", "data.test=null")
    done = tiny.called("train", *line, "--plugin", plugin)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "mtplug-train: ValueError: no such weight  (in plugin 'own' (file own.py"
    )
    assert last.endswith("own.py:10; --debug shows the traceback)")


def test_settings_that_went_with_another_version_are_told_with_both(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    for file, old, new in (("config.yaml", "max_epochs", "max_eras"),
                           ("environment.json", f'"{mtplug.__version__}"', '"0.0.1"')):  # fmt: skip
        (run / file).write_text((run / file).read_text().replace(old, new))
    done = tiny.called("translate", run, input="ka lo\n")
    assert done.returncode == 2 and "unknown key 'max_eras' of training" in done.stderr
    made = f"(the run was made with mtplug 0.0.1, here is {mtplug.__version__})"
    assert done.stderr.rstrip().endswith(made)


def test_minutes_are_counted_between_lines_of_the_log(folder):
    options = ("training.max_updates=100000", "training.log_every=100000", "data.test=null")
    rare = ("validation.every_updates=100000", "training.max_minutes=0.01")
    tiny.train(folder, "run", *options, *rare)
    (end,) = [e for e in read_events(folder / "run" / "metrics.jsonl") if e["event"] == "end"]
    assert end["reason"] == "0.01 minutes are over" and end["update"] < 10_000


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(folder, capsys):
    plugin = folder / "bomb.py"
    plugin.write_text(
        "import mtplug, torch\n@mtplug.hookimpl\ndef on_update_end(trainer, update):\n"
        "    if update == 6: next(trainer.model.parameters()).data.fill_(float('nan'))\n"
    )
    done = tiny.called(
        "train", *tiny.arguments(folder, "run", "checkpoint.every_updates=5"), "--plugin", plugin
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "update 7" in last and "not finite" in last and "last good checkpoint" in last
    kept = Checkpoints(folder / "run" / "checkpoints").steps()[-1]
    assert kept.name == "step-00000005"
    assert all(t.isfinite().all() for t in load_file(kept / "model.safetensors").values())


def test_full_disk_while_saving_keeps_earlier_checkpoints(folder, capsys, monkeypatch):
    tiny.train(folder, "run", "training.max_updates=5", "data.test=null")
    real, calls = ckpt.save_tensors, []

    def save(tensors, path):
        calls.append(path)
        real(tensors, path)
        if "training" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ckpt, "save_tensors", save)
    message = fails(folder, capsys, "training.max_updates=9", "data.test=null", status=1)
    assert "the disk is full" in message and "earlier checkpoints are untouched" in message
    names = sorted(p.name for p in (folder / "run" / "checkpoints").iterdir())
    assert names == ["best", "last", "step-00000005"] or names == ["last", "step-00000005"]
    monkeypatch.undo()
    tiny.train(folder, "run", "training.max_updates=9", "data.test=null")
    assert Checkpoints(folder / "run" / "checkpoints").steps()[-1].name == "step-00000009"


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors", "state.json"])
def test_checkpoint_cut_short_is_told(folder, capsys, file):
    run = tiny.train(folder, "run", "training.max_updates=8", "data.test=null")
    path = run / "checkpoints" / "last" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = fails(folder, capsys, "training.max_updates=10", "data.test=null")
    assert f"{file} is damaged" in message and "remove" in message
    if file == "model.safetensors":
        with pytest.raises(UserError, match="is damaged"):
            mtplug.load(run, checkpoint="last")


def test_an_older_checkpoint_that_is_damaged_is_told_before_any_work(folder, capsys):
    every = ("checkpoint.every_updates=4", "data.test=null")
    run = tiny.train(folder, "run", "training.max_updates=8", *every)
    (run / "checkpoints" / "step-of-mine").mkdir()  # no checkpoint, and nobody's business
    (run / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    message = fails(folder, capsys, "training.max_updates=12", *every)
    assert "step-00000004/state.json is damaged (version or update is no whole number)" in message
    assert not (run / "checkpoints" / "step-00000012").exists()


def test_a_last_event_cut_within_a_character_is_left_out(tmp_path):
    whole = json.dumps({"event": "note", "text": "ü"}, ensure_ascii=False).encode()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b"\n" + whole[:-3])
    assert read_events(tmp_path / "metrics.jsonl") == [{"event": "note", "text": "ü"}]


def test_test_sets_that_were_not_scored_yet_are(folder, capsys):
    tests = "data.test=[{source: test.xx, target: test.en}, {source: valid.xx, target: valid.en}]"
    options = ("training.max_updates=3", tests)
    (obstacle := folder / "run/samples/test-valid.txt").mkdir(parents=True)
    assert "test-valid.txt" in fails(folder, capsys, *options)
    events = read_events(folder / "run" / "metrics.jsonl")
    assert [e["split"] for e in events if e["event"] == "test"] == ["test"]
    obstacle.rmdir()
    tiny.train(folder, "run", *options)
    tiny.train(folder, "run", *options)  # with nothing left to do
    events = read_events(folder / "run" / "metrics.jsonl")
    assert [e["split"] for e in events if e["event"] == "test"] == ["test", "test", "valid"]


def test_a_folder_s_name_is_no_formula(folder):
    drawn = "logging.trackers=[{name: jsonl}, {name: curves}, {name: report}]"
    run = tiny.train(folder, "a$_$b", "training.max_updates=2", "data.test=null", drawn)
    assert (run / "curves.png").is_file()


FREE = """
from dataclasses import dataclass
import mtplug
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.registry import free
@dataclass
class Config(LabelSmoothedCrossEntropyConfig):
    rows: int = free(8)
    sharpness: int = 8
@mtplug.hookimpl
def register_criteria(register): register("rows", LabelSmoothedCrossEntropy, Config)
"""


def test_only_free_settings_may_change_when_a_run_goes_on(folder, capsys):
    """Also those of a plugin. The size of batches may, which is told (DESIGN 6)."""
    (folder / "rows.py").write_text(FREE)
    chosen = (f"--plugin={folder / 'rows.py'}", "criterion.name=rows", "data.test=null")
    tiny.train(folder, "run", "training.max_updates=2", *chosen)
    more = (
        "criterion.rows=4",
        "training.log_every=1",
        "search={name: greedy}",
        "logging.samples=1",
    )
    tiny.train(folder, "run", "training.max_updates=3", "training.max_minutes=9", *more, *chosen)
    told = fails(folder, capsys, "criterion.sharpness=4", *chosen)
    assert "was begun with criterion.sharpness=" in told
    capsys.readouterr()
    sizes = ("training.max_tokens=77", "training.max_sentences=3", "training.max_updates=4")
    tiny.train(folder, "run", *more, *chosen, *sizes)
    told = capsys.readouterr().err
    assert "training.max_tokens was 256 and is 77: batches are cut anew" in told
    assert "training.max_sentences was 0 and is 3: batches are cut anew" in told


def test_a_base_that_comes_too_late_is_refused(folder, tiny_run, capsys):
    """A begun run went on without it, and its configuration named a base whose weights it never had."""
    tiny.train(folder, "run", "training.max_updates=1", "data.test=null")
    told = fails(folder, capsys, f"training.finetune_from={tiny_run}", "data.test=null")
    assert f"was begun without training.finetune_from={tiny_run}; leave it out" in told


def test_changed_data_or_settings_under_an_old_run_are_refused(folder, capsys):
    tiny.train(folder, "run", "training.max_updates=8", "data.test=null")
    message = fails(folder, capsys, "optimizer.lr=0.1", "data.test=null")
    assert "was begun with optimizer.lr=0.005, not 0.1; set it so, or choose" in message
    frozen = fails(folder, capsys, "training.freeze=encoder.*", "data.test=null")
    assert "was begun without training.freeze.0.parameters=encoder.*; leave it out" in frozen
    other = fails(folder, capsys, "optimizer.name=adamw", "seed=2", "data.test=null")
    assert "was begun with optimizer.name=adam, not adamw; set it so (seed differs, too)" in other
    keys = ("optimizer.beta1=0.3", "optimizer.beta2=0.3", "optimizer.eps=1", "optimizer.lr=1")
    more = ("seed=2", "training.clip_norm=3", "data.test=null")
    many = fails(folder, capsys, *keys, *more)
    assert "begun with optimizer.beta1=0.9, not 0.3" in many
    assert "(optimizer.beta2, optimizer.eps, optimizer.lr, seed and 1 more differ, too)" in many
    text = (folder / "train.xx").read_text()
    (folder / "train.xx").write_text(text.replace("ka", "lo", 1))
    assert "has changed since" in fails(folder, capsys, "data.test=null")


def test_model_that_does_not_fit_a_checkpoint_names_the_tensors(tiny_run):
    with pytest.raises(UserError, match=r"not in the model: decoder\.1\."):
        mtplug.load(tiny_run, overrides=["architecture.decoder_layers=1"])
    with pytest.raises(UserError, match="has shape"):
        mtplug.load(tiny_run, overrides=["architecture.ffn_dim=32"])


def test_what_is_no_run_is_told(tmp_path, tiny_run):
    with pytest.raises(UserError, match="does not exist"):
        mtplug.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no run"):
        mtplug.load(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint 'step-9'; there: .*best"):
        mtplug.load(tiny_run, checkpoint="step-9")


def test_checkpoints_of_this_format_keep_loading(tmp_path):
    """A run made when format 1 was new; its translations were written down then."""
    shutil.copytree(GOLDEN, tmp_path / "run", symlinks=True)
    expected = json.loads((GOLDEN / "translations.json").read_text())
    assert mtplug.load(tmp_path / "run").translate(list(expected)) == list(expected.values())


def test_a_run_of_a_newer_format_does_not_translate(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    file = run / "checkpoints/best/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 99}))
    with pytest.raises(UserError, match=r"is of format 99.*install a newer mtplug"):
        mtplug.load(run)


def test_checkpoint_of_a_newer_format_is_refused(tmp_path):
    (tmp_path / "state.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="is of format 99, this mtplug reads up to 1"):
        ckpt.read_state(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without space")
@pytest.mark.parametrize("file", [".config.yaml.partial", ".metrics.jsonl.partial"])
def test_full_disk_is_said_and_the_same_command_goes_on_afterwards(folder, capsys, file):
    (folder / "run").mkdir()
    (folder / "run" / file).symlink_to("/dev/full")
    assert "no space left on the disk" in (error := fails(folder, capsys, status=1))
    assert "run the same command again" in error
    for left in (file, "metrics.jsonl"):  # where the link was moved to
        (folder / "run" / left).unlink(missing_ok=True)
    assert main(tiny.arguments(folder, "run", "training.max_updates=8")) == 0
    assert (folder / "run" / "checkpoints" / "last" / "model.safetensors").is_file()


def test_full_disk_under_the_store_is_said(folder, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mtplug.data.build.os.fsync", full)
        assert "no space left on the disk" in fails(folder, capsys, "data.workers=1", status=1)
    assert not (folder / "run" / "data" / "train-0").exists()
    assert main(tiny.arguments(folder, "run", "training.max_updates=8")) == 0


def test_weights_have_the_permissions_of_other_files(tiny_run, monkeypatch):
    """Those that safetensors writes may be read by their owner only, and it calls them missing then."""
    kinds = {
        oct(p.stat().st_mode & 0o777)
        for p in tiny_run.rglob("*")
        if p.is_file() and p.name != ".lock"
    }
    assert len(kinds) == 1, kinds
    file = (tiny_run / "checkpoints" / "best" / "model.safetensors").resolve()

    def refused(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("safetensors.torch.load_file", refused)
    with pytest.raises(
        UserError, match=re.escape(f"{file}: you have no permission to read it; its owner")
    ):
        mtplug.load(tiny_run)
