"""The report of a run, and TensorBoard's files, hold what metrics.jsonl and the samples hold."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mtplug import testing
from mtplug.registry import NoConfig
from mtplug.training import trackers
from mtplug.training.curves import figure
from mtplug.training.report import ReportConfig, page, spread
from mtplug.training.trackers import Console, JsonLines, read_events
from mtplug.training.validation import read_samples, write_samples


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 4 updates that was stopped after 2 and resumed."""
    folder = tmp_path_factory.mktemp("report")
    trackers = "logging.trackers=[{name: jsonl}, {name: report}, {name: tensorboard}]"
    settings = (trackers, "training.log_every=1", "validation.every_updates=1")
    testing.train(folder, *settings, updates=2)
    return testing.train(folder, *settings, updates=4)


class Parsed(HTMLParser):
    """All text, the elements' names, and every address that a browser would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.tags, self.fetched, self.open = "", [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "path", "use", "br", "rect", "stop"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action") and not value.startswith("#"):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_holds_scores_samples_and_conditions_and_fetches_nothing(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert parsed.open == [] and parsed.fetched == [] and "script" not in parsed.tags
    events = read_events(run / "metrics.jsonl")
    test = [e for e in events if e["event"] == "test"][-1]
    for said in test["texts"]:  # scores with their signatures
        assert said in parsed.text
    for e in events:
        if e["event"] == "validation":
            assert f"{e['scores']['loss']:.3f}" in parsed.text
    last = sorted((run / "samples").glob("valid-*.txt"))[-1]
    source, reference, translation = read_samples(last)[0]
    assert source in parsed.text and reference in parsed.text and translation in parsed.text
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] in parsed.text
    assert (run / "config.yaml").read_text().strip() in parsed.text
    parameters = next(e["parameters"] for e in events if e["event"] == "start")
    assert f"{parameters:,}" in parsed.text
    assert "ended: 4 updates are done" in parsed.text


def test_report_shows_hostile_text_as_text(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    hostile = "</dd><script>alert(1)</script>\x07"
    write_samples_into(folder, [(hostile, "b", "c")])
    parsed = Parsed(page(folder, ReportConfig()))
    assert "script" not in parsed.tags and "alert(1)" in parsed.text and "␇" in parsed.text


def write_samples_into(folder, samples):
    write_samples(folder / "samples", "valid-step-00000004", samples, 10)


def test_samples_are_read_as_they_were_written(tmp_path):
    samples = [("a b", "", "c"), ("", "d", ""), ("source       x", "y", "z")]
    write_samples(tmp_path / "s", "valid-step-00000001", samples, 10)
    assert read_samples(tmp_path / "s" / "valid-step-00000001.txt") == samples


def test_spread_keeps_first_and_last():
    assert spread(range(100), 4) == [0, 33, 66, 99]
    assert spread(range(3), 4) == [0, 1, 2]
    assert spread(range(3), 1) == [2]


def test_tensorboard_reads_the_scalars_of_metrics_jsonl(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    events = read_events(run / "metrics.jsonl")
    for kind, tag, value in (
        ("train", "train/loss", lambda e: e["loss"]),
        ("validation", "validation/bleu", lambda e: e["scores"]["bleu"]),
    ):
        expected = [(e["update"], value(e)) for e in events if e["event"] == kind]
        found = [(s.step, s.value) for s in read.Scalars(tag)]
        assert [s for s, _ in found] == [1, 2, 3, 4] == [s for s, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-6)
    tags = read.Tags()
    assert any(re.fullmatch(r"test/.*/bleu", tag) for tag in tags["scalars"])
    assert any(tag.startswith("samples/0") for tag in tags["tensors"])


def test_events_and_samples_come_back_with_all_their_characters(tmp_path):
    odd = "a\u2028b\x85c"
    file = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"event": "note", "text": t}, ensure_ascii=False) for t in (odd, "next")]
    file.write_text("\n".join(rows) + '\n{"cut', encoding="utf-8")
    assert [e["text"] for e in read_events(file)] == [odd, "next"]
    samples = [("a\rb", odd, "d"), ("e", "", "f")]
    write_samples(tmp_path, "valid", samples, 2)
    assert read_samples(tmp_path / "valid.txt") == samples


def test_parts_of_the_loss_are_drawn_and_shown(tmp_path, capsys):
    kept = {"epoch": 1, "loss": 3.0, "nll": 2.0, "lr": 0.1, "tokens_per_second": 5.0}
    parts = [{"a": 1.0}, {"a": 2.0, "b": 4.0}]
    events = [{"event": "train", "update": n, **kept, "parts": p} for n, p in enumerate(parts)]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure(events).axes[4].lines}
    assert drawn == {"a": [[0, 1], [1, 2]], "b": [[1, 4]]}
    assert len(figure([{**events[0], "parts": {}}]).axes) == 4
    console = Console(None, tmp_path)
    console.start(0, 2)
    console.event("train", {**events[1], "seconds_left": None})
    console.close()
    assert "loss 3.000  a 2  b 4  5 tokens/s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("left", "told"), [(12.0, "12 seconds"), (200, "3.3 minutes"), (9e5, "10.4 days")]
)
def test_the_time_left_is_told_in_a_unit_that_fits(tmp_path, capsys, left, told):
    """The last half minute was 0 min, and ten days 15000 min."""
    kept = {"epoch": 1, "loss": 3.0, "nll": 2.0, "lr": 0.1, "tokens_per_second": 5.0}
    console = Console(None, tmp_path)
    console.start(0, 2)
    console.event("train", {"event": "train", "update": 1, **kept, "seconds_left": left})
    console.close()
    assert f"at most {told} left" in capsys.readouterr().err


def test_lines_that_are_no_events_cost_no_others(tmp_path, capsys):
    """All that came behind the first one was lost, and then erased when the run was resumed."""
    good = [{"event": "note", "update": n, "text": "x"} for n in range(4)]
    lines = [json.dumps(e) for e in good]
    bad = [
        "[1]",
        "null",
        "{}",
        '{"event": 1}',
        '{"event": "note", "update": "x"}',
        "\0",
        "[" * 100_000,
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join([lines[0], *bad, *lines[1:]]) + '\n{"event": "no')
    assert read_events(file) == good
    told = capsys.readouterr().err
    assert told == f"{file}:2: no event ({len(bad)} such lines); left out\n"
    tracker = JsonLines(NoConfig(), tmp_path)
    tracker.start(2, 9)
    tracker.close()
    assert [json.loads(line)["update"] for line in file.read_text().splitlines()] == [0, 1, 2]
    capsys.readouterr()
    read_events(file)
    assert capsys.readouterr().err == ""


def test_names_of_corpora_are_text(tmp_path):
    label = "<script>alert(1)</script>"
    scores = {"loss": 1.0}
    event = {
        "event": "validation", "update": 1, "epoch": 1, "scores": scores, "best": True,
        "corpora": {label: scores, "other": scores},
    }  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event))
    parsed = Parsed(page(tmp_path, ReportConfig()))
    assert label in parsed.text and "script" not in parsed.tags


def test_many_validations_are_drawn_now_and_then_and_the_end_always(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: clock[0])
    drawn = []

    class Picture(trackers.Drawn):
        def draw(self):
            drawn.append(clock[0])
            clock[0] += 3  # which does not count as time since

    picture = Picture(None, tmp_path)
    for _ in range(8):
        picture.event("train", {})
        picture.event("validation", {})
        clock[0] += 10
    picture.event("end", {})
    assert drawn == [100.0, 133.0, 166.0, 189.0]
