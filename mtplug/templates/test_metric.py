"""The metric."""

import json

from mtplug import testing


def test_it_keeps_its_contract():
    testing.check_metric("NAME")


def test_a_tiny_run_is_scored_with_it(tmp_path):
    run = testing.train(
        tmp_path, "validation.metrics=[{name: NAME}]", "validation.best_metric=NAME"
    )
    events = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert all(0 <= e["scores"]["NAME"] <= 100 for e in events if e["event"] == "validation")
