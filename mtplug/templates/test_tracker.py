"""The tracker."""

from mtplug import testing


def test_it_keeps_its_contract():
    testing.check_tracker("NAME")


def test_a_tiny_run_tells_it_of_its_events(tmp_path):
    run = testing.train(tmp_path, "logging.trackers=[{name: jsonl}, {name: NAME}]")
    assert "4 validation" in (run / "events.txt").read_text()
