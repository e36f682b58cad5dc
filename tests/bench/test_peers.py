"""Other toolkits beside ours, without any of them: a made-up one answers as they do."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtplug import testing
from mtplug.bench import peers, train
from mtplug.bench.peers import Peer, environment, start
from mtplug.bench.peers.process import Worker
from mtplug.bench.rounds import Spent, ratio_text, ratios, take_turns
from mtplug.cli import bench
from mtplug.data.batching import collate
from mtplug.errors import MtplugError, UserError
from tests import tiny

# Of the distribution, which need not say the build that torch.__version__ does.
TORCH = importlib.metadata.version("torch")
SETTINGS = {"suite": "train", "vocabulary": 30, "sentences": 2, "length": 4, "threads": 1}
FAKE = """\
import os
import torch
from worker import pairs

def train(settings):
    print("libraries print")
    model = torch.nn.Linear(1, 1, bias=False)
    source, target = pairs(settings, end=2)
    assert source.shape == target.shape == (settings["sentences"], settings["length"])
    assert source[:, -1].tolist() == [2] * settings["sentences"] and source[:, :-1].min() >= 10
    model.weight.data.fill_(1.0)
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == 3 and settings["sentences"] == 2:
            raise ValueError("third")
        if len(calls) == 5 and settings["sentences"] == 2:
            os._exit(3)
        return model(torch.ones(1, 1)).float().sum() ** 2

    return model, torch.optim.SGD(model.parameters(), lr=0.25), loss

def translate(settings):
    def search(source, beam, precision):
        assert torch.is_inference_mode_enabled() and len(source) <= settings["batch"]
        return [settings["length"] + (beam == 3)] * len(source)

    return 2, search
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    return Peer("fake", "torch==0", (), tmp_path / "fake.py")


def test_a_worker_answers_each_request_and_outlives_one_that_fails(fake):
    worker = Worker(fake, Path(sys.executable), SETTINGS, limit=60)
    try:
        assert worker.label == f"fake {TORCH}" and worker.torch == torch.__version__
        # w ← w − 0.25 · 2w = w / 2, so the loss w² goes 1, 1/4, 1/16; bf16 holds these exactly.
        first, second = worker.ask(precision="fp32"), worker.ask(precision="bf16")
        assert (
            first["result"] == {"loss": 1.0, "parameters": 1} and second["result"]["loss"] == 0.25
        )
        assert first["cpu"] >= 0 and 0 < first["wall"] < 60
        with pytest.raises(MtplugError, match="fake: does not run here: ValueError: third"):
            worker.ask(precision="fp32")
        assert worker.ask(precision="fp32")["result"]["loss"] == 1 / 16
        with pytest.raises(MtplugError, match="fake: its process ended with status 3"):
            worker.ask(precision="fp32")
    finally:
        worker.close()
    assert worker.process.returncode == 3


def test_a_peer_that_cannot_be_built_says_why(fake):
    fake.script.write_text("import no_such_module")
    with pytest.raises(
        MtplugError, match=r"^fake: does not run here: ModuleNotFoundError: .*no_such_module'$"
    ):
        Worker(fake, Path(sys.executable), SETTINGS, limit=60)


def test_a_worker_that_does_not_answer_is_ended(fake):
    with pytest.raises(MtplugError, match=r"^fake: no answer after 0.05 seconds$"):
        Worker(fake, Path(sys.executable), SETTINGS, limit=0.05)


class FakeRun:
    """In the place of subprocess.run: makes what venv makes, and fails where it is told to."""

    def __init__(self, monkeypatch):
        self.commands: list[list[str]] = []
        self.fails = ""
        monkeypatch.setattr(environment.subprocess, "run", self)

    def __call__(self, command, **options):
        assert options["timeout"] and "PYTHONPATH" not in options["env"]
        self.commands.append(command)
        if "venv" in command:
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            (Path(command[-1]) / "lib" / version / "site-packages").mkdir(parents=True)
            (Path(command[-1]) / "bin").mkdir()
            (Path(command[-1]) / "bin" / "python").touch()
        failed = self.fails and self.fails in command
        text = (
            "Collecting\nERROR: first\n  ERROR: No matching distribution found\n[notice] new pip\n"
        )
        return subprocess.CompletedProcess(command, 1 if failed else 0, text if failed else "")


@pytest.mark.skipif(sys.platform == "win32", reason="the fake environment has POSIX paths")
def test_environment_is_made_once_and_again_after_a_failure(fake, tmp_path, monkeypatch):
    peer, run = Peer("fake", "fake==1", ("needed",), fake.script), FakeRun(monkeypatch)
    run.fails = "fake==1"
    for _ in range(2):
        with pytest.raises(
            MtplugError,
            match=r"^fake: does not install here: ERROR: No matching distribution found$",
        ):
            environment.prepare(peer, tmp_path)
    run.fails, run.commands = "", []
    python = environment.prepare(peer, tmp_path)
    assert python == tmp_path / "fake" / "bin" / "python"
    assert environment.prepare(peer, tmp_path) == python
    _, needs, itself = run.commands  # and none from the second time
    assert needs[-1] == "needed" and "-c" in needs and itself[-2:] == ["--no-deps", "fake==1"]
    (pth,) = (tmp_path / "fake").glob("lib/*/site-packages/*.pth")
    assert (Path(pth.read_text().strip()) / "torch").is_dir()
    assert (
        (tmp_path / "fake" / "constraints.txt")
        .read_text()
        .startswith(f"torch=={torch.__version__.split('+')[0]}")
    )
    run.commands = []
    environment.prepare(Peer("fake", "fake==2", ("needed",), fake.script), tmp_path)
    assert len(run.commands) == 3


def test_suite_measures_the_peers_there_are_and_tells_of_those_that_are_not(
    fake, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")

    def prepare(peer, folder):
        if peer.name == "broken":
            raise MtplugError("broken: does not install here: no compiler")
        return Path(sys.executable)

    monkeypatch.setattr(peers, "PEERS", [Peer("broken", "broken==1", (), fake.script), fake])
    monkeypatch.setattr(start, "prepare", prepare)
    monkeypatch.setattr(train, "SQUARE", 64)
    sizes = [
        "device=cpu",
        "dim=16",
        "ffn_dim=16",
        "layers=1",
        "vocabulary=50",
        "sentences=3",
        "length=5",
        "rounds=2",
    ]
    out, plot = tmp_path / "o.json", tmp_path / "o.png"
    assert (
        bench.main(["run", "train", *sizes, "--output", str(out), "--plot", str(plot), "--peers"])
        == 0
    )
    assert "left out: broken: does not install here: no compiler" in capsys.readouterr().out
    whole = json.loads(out.read_text())
    precisions = ["fp32"] if any("bf16" in text for text in whole["left_out"]) else ["fp32", "bf16"]
    found = [(row["side"].split()[0], row["precision"]) for row in whole["rows"]]
    assert found == [(s, p) for p in precisions for s in ("mtplug", "torch.nn.Transformer", "fake")]
    for row in whole["rows"]:
        assert 0 < row["least"] <= row["tokens/s"] <= row["most"] and row["by the clock"] > 0
        assert row["of the peak"] >= 0
        own = row["side"] == "mtplug"
        assert (row[f"mtplug {row['precision']} is faster by"] == "1.00 (1.00–1.00)") == own
    assert whole["conditions"]["torch of the peers"] == [torch.__version__]
    assert whole["conditions"]["seconds"] == "CPU time"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_translations_of_another_length_do_not_count(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", [fake])
    monkeypatch.setattr(start, "prepare", lambda peer, folder: Path(sys.executable))
    sizes = ["dim=16", "ffn_dim=16", "layers=1", "vocabulary=50", "shortlist=20", "sentences=5", "batch=2",
             "length=4", "beam=3", "rounds=2", "peers=[fake]"]  # fmt: skip
    out = tmp_path / "o.json"
    assert bench.main(["run", "translate", *sizes, "--output", str(out)]) == 0
    whole = json.loads(out.read_text())
    fakes = [row for row in whole["rows"] if row["side"].startswith("fake")]
    ours = [row for row in whole["rows"] if row["side"].startswith("mtplug")]
    assert {row["beam"] for row in fakes} == {1} and {row["beam"] for row in ours} == {1, 3}
    assert (
        "fake: does not run here: ValueError: translations have lengths [5], not 4"
        in whole["left_out"]
    )
    for row in ours + fakes:
        assert (
            0 < row["least"] <= row["sentences/s"] <= row["most"] and row["one sentence, ms"] >= 0
        )
        assert any(key.startswith("times fake") for key in row) == (row["beam"] == 1)


def test_our_own_translations_of_another_length_do_not_count(tmp_path):
    sizes = [
        "dim=16",
        "ffn_dim=16",
        "layers=1",
        "vocabulary=50",
        "sentences=2",
        "length=4",
        "beam=2",
        "rounds=1",
    ]
    out = tmp_path / "o.json"
    line = [
        "run",
        "translate",
        *sizes,
        "shortlist=2",
        "--output",
        str(out),
    ]  # nothing but padding and the end
    assert bench.main(line) == 0
    whole = json.loads(out.read_text())
    assert "mtplug fp32, shortlist: translations have lengths [1], not 4" in whole["left_out"]
    assert {(row["side"], row["beam"]) for row in whole["rows"]} >= {
        ("mtplug fp32", 2), ("mtplug fp32", 1),
    }  # fmt: skip
    assert not [row for row in whole["rows"] if "shortlist" in row["side"]]


def test_rates_of_training_are_named_after_the_seconds_they_count(monkeypatch, tmp_path):
    labels = []
    monkeypatch.setattr(train, "bars", lambda panels, value, label, file: labels.append(label))
    suite = train.TrainSuite(train.TrainSuiteConfig(device="cpu"))
    suite.plot([{"precision": "fp32"}], tmp_path / "p.png")
    suite.device = torch.device("cuda")
    suite.plot([{"precision": "fp32"}], tmp_path / "p.png")
    assert [label.partition("\n")[0] for label in labels] == [
        "target tokens per CPU second", "target tokens per second",
    ]  # fmt: skip


def test_a_reference_of_another_number_of_lines_is_refused_before_anything_is_loaded(
    tmp_path, capsys
):
    for name, lines in (("in", "a\nb\n"), ("out", "a\n")):
        (tmp_path / name).write_text(lines)
    line = ["run", "translate_run", "run=nowhere", f"input={tmp_path / 'in'}"]
    assert bench.main([*line, f"reference={tmp_path / 'out'}"]) == 2
    assert "out has 1 lines" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert bench.main([*line, f"reference={tmp_path / 'none'}"]) == 2
    assert "none: No such file or directory" in capsys.readouterr().err


def test_peers_are_named_rightly_or_refused(capsys):
    assert [peer.name for peer in peers.chosen(["all"])] == [
        "joeynmt", "opennmt-py", "eole", "fairseq", "transformers",
    ]  # fmt: skip
    assert [peer.name for peer in peers.chosen(["eole"])] == ["eole"]
    with pytest.raises(UserError, match="'fairsek' is none of all, joeynmt"):
        peers.chosen(["fairsek"])
    assert bench.main(["run", "data", "--peers"]) == 2
    assert "suite data has no peers" in capsys.readouterr().err
    assert all(peer.script.is_file() for peer in peers.PEERS)


def test_sides_take_turns_and_one_that_fails_is_dropped():
    turns = []

    def side(name, fails_at=-1):
        def turn():
            turns.append(name)
            if turns.count(name) == fails_at:
                raise MtplugError(f"{name} is gone")
            return Spent(float(len(turns)), 1.0)

        return turn

    left_out: list[str] = []
    spent = take_turns({"a": side("a"), "b": side("b", fails_at=2), "c": side("c")}, 2, left_out)
    assert turns == ["a", "b", "c"] * 2 + ["a", "c"] and left_out == ["b is gone"]
    assert spent == {"a": [Spent(4, 1), Spent(7, 1)], "c": [Spent(6, 1), Spent(8, 1)]}


def test_ratios_are_of_the_same_round():
    assert ratio_text(ratios([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])) == "3.00 (2.00–4.00)"


def test_flops_are_those_that_torch_counts():
    c = train.TrainSuiteConfig(
        dim=16, ffn_dim=24, heads=2, layers=2, vocabulary=40, sentences=3, length=5
    )
    rows = [([5] * (c.length - 1), [6] * (c.length - 1)) for _ in range(c.sentences)]
    batch = collate(
        [tuple(map(torch.tensor, row)) for row in rows], torch.arange(c.sentences).numpy()
    )
    plain = train._Plain(c)
    # as products and a softmax, which are counted; the fused kernel of a CPU is not
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain.loss(batch).backward()
    assert counter.get_total_flops() == train.flops_per_token(c) * c.sentences * c.length


ECHO = """\
from pathlib import Path

def translate_run(settings):
    folder = Path(settings["weights"])
    assert (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()

    def search(source, beam, precision):
        lengths = [len(ids) for ids in source]
        assert len(source) <= settings["batch"] and lengths == sorted(lengths, reverse=True)
        assert all(ids[-1] == 1 and 1 not in ids[:-1] for ids in source)
        return source if beam == 2 else [[1]] * len(source)

    return search
"""


def test_a_run_translates_beside_those_that_take_its_weights(
    fake, tiny_run, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    settings = (
        "architecture.norm=post",
        "data.test=null",
        "lr_scheduler.name=cosine",
        "validation.every_updates=350",
    )
    run = testing.train(tmp_path, *settings, updates=350)
    (tmp_path / "echo.py").write_text(ECHO)
    echo = Peer("echo", "torch==0", (), tmp_path / "echo.py")
    marian = Peer("marian", "torch==0", (), peers.SCRIPTS / "marian_peer.py")
    there = importlib.util.find_spec("transformers") is not None
    monkeypatch.setattr(peers, "PEERS", [fake, echo, *([marian] if there else [])])
    monkeypatch.setattr(start, "prepare", lambda peer, folder: Path(sys.executable))
    for side, name in enumerate(("in", "out")):
        lines = [pair[side] + "\n" for pair in tiny.pairs(7, seed=5)]
        (tmp_path / name).write_text("".join(lines))
    out, plot = tmp_path / "o.json", tmp_path / "o.png"
    settings = [f"input={tmp_path / 'in'}", f"reference={tmp_path / 'out'}", "beams=[2,1]", "batch=3",
                "rounds=2", "shortlist=20", "checkpoint=last"]  # fmt: skip
    line = ["run", "translate_run", *settings, "--output", str(out), "--plot", str(plot), "--peers"]
    assert bench.main([*line, f"run={run}"]) == 0
    whole = json.loads(out.read_text())
    assert whole["left_out"][-1] == (
        "fake: does not run here: ValueError: no way is known to give it the weights of a run"
    )
    rows = {(row["side"].replace(f" {TORCH}", ""), row["beam"]): row for row in whole["rows"]}
    assert rows["mtplug fp32", 2]["as mtplug fp32"] == "100.0 %"
    assert (
        rows["echo fp32", 2]["as mtplug fp32"] == rows["echo fp32", 1]["as mtplug fp32"] == "0.0 %"
    )
    assert rows["echo fp32", 1]["BLEU"] == 0 and rows["mtplug fp32", 2]["BLEU"] > 0
    if there:  # the same weights, and another library's search
        for beam in (2, 1):
            assert rows["marian fp32", beam]["as mtplug fp32"] == "100.0 %"
            assert rows["marian fp32", beam]["BLEU"] == rows["mtplug fp32", beam]["BLEU"]
    assert all(any(key.startswith("times ") for key in row) for row in whole["rows"])
    for count in (1, 3):
        assert rows[f"mtplug fp32, {count} required", 2]["unmet"] == 0
        assert rows[f"mtplug fp32, {count} required", 2]["of the time of none"]
        assert (f"mtplug fp32, {count} required", 1) not in rows
    assert plot.read_bytes().startswith(b"\x89PNG")

    assert bench.main([*line, "rounds=1", f"run={tiny_run}"]) == 0  # a model that none can take
    whole = json.loads(out.read_text())
    assert whole["left_out"][-1].startswith("peers: exporter marian: Marian is post-norm")
    assert {row["side"].split()[0] for row in whole["rows"]} == {"mtplug"}
    assert bench.main(["run", "translate_run", "input=nowhere", f"run={run}"]) == 2
    assert "needs run=FOLDER and input=FILE" in capsys.readouterr().err
