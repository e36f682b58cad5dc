"""The lifecycle hooks."""

import json

from mtplug import testing


def test_runs_resume_to_the_same_weights(tmp_path):
    testing.check_hooks(tmp_path)


def test_a_run_is_watched(tmp_path):
    run = testing.train(tmp_path)
    assert "4 updates are done; highest loss" in (run / "NAME.txt").read_text()
    events = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert all(e["scores"]["highest_loss"] > 0 for e in events if e["event"] == "validation")


def test_a_run_that_falls_apart_is_stopped(tmp_path):
    run = testing.train(
        tmp_path, "optimizer.lr=3", "lr_scheduler={name: constant, warmup_updates: 0}"
    )
    assert "NAME: the loss of update" in (run / "NAME.txt").read_text()
