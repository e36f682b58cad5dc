"""A run that learns the made-up language, and what commands and programs do with it."""

import json

import pytest
import torch
from safetensors.torch import load_file

import mtplug
from mtplug import testing
from mtplug.cli.evaluate import main as evaluate
from mtplug.cli.train import main as train
from mtplug.cli.translate import main as translate
from mtplug.search import Wishes
from mtplug.testing.tiny import write_corpus

OURS = (
    "architecture.name=cmlm_transformer", "architecture.length=relative", "criterion.name=cmlm",
    "search.name=mask_predict", "validation.search.name=mask_predict",
    "logging.trackers=[{name: jsonl}]",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maskpredict")
    return testing.train(folder, *OURS, "lr_scheduler.name=cosine", updates=300)


def lines(run, name):
    return (run.parent / name).read_text().splitlines()


def validations(run):
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event["scores"] for event in events if event["event"] == "validation"]


def test_it_learns(run):
    translator = mtplug.load(run, device="cpu")
    found = translator.translate(lines(run, "test.xx"))
    right = [a == b for a, b in zip(found, lines(run, "test.en"), strict=True)]
    assert sum(right) > len(right) / 2
    assert sum(map(len, translator.nbest(["ka lo mi"], nbest=5))) == 5
    first, last = (scores["loss"] for scores in validations(run))
    assert last < first


def test_commands(run, tmp_path, capsys):
    (tmp_path / "in").write_text("ka lo\nmi nu pe\n\n")
    command = [str(run), "--input", str(tmp_path / "in"), "--device", "cpu"]
    plot = ["--attention-plot", str(tmp_path / "plot.svg")]
    assert translate([*command, "--nbest", "2", "--format", "jsonl", *plot]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3 and rows[2]["text"] == ""
    assert rows[0]["nbest"][0]["text"] == rows[0]["text"] and len(rows[0]["nbest"]) == 2
    assert len(rows[1]["token_scores"]) == len(rows[1]["tokens"]) + 1
    assert len(rows[1]["alignment"]) == len(rows[1]["tokens"])
    assert (tmp_path / "plot.svg").stat().st_size > 0
    assert evaluate([str(run), "--device", "cpu"]) == 0


def test_a_run_resumes_to_the_same_weights_bit_for_bit(tmp_path):
    often = (*OURS, "validation.every_updates=2", "architecture.dropout=0.1")
    whole = testing.train(tmp_path, *often, updates=4, name="whole")
    testing.train(tmp_path, *often, updates=2, name="parts")
    parts = testing.train(tmp_path, *often, updates=4, name="parts")
    a, b = (load_file(r / "checkpoints" / "last" / "model.safetensors") for r in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert validations(parts)[-1] == validations(whole)[-1]


def test_beam_search_and_given_translations_are_refused(run):
    beam = mtplug.load(run, device="cpu", overrides=["search.name=beam"])
    with pytest.raises(
        mtplug.UserError,
        match="needs a model that predicts the next token, which CmlmTransformer does not",
    ):
        beam.translate(["ka"])
    with pytest.raises(mtplug.UserError, match="cannot score given translations"):
        mtplug.load(run, device="cpu").score(["ka"], ["one"])
    with pytest.raises(mtplug.UserError, match="takes no prefix, required or forbidden phrases"):
        mtplug.load(run, device="cpu").nbest(["ka"], wishes=[Wishes(prefix="two")])


def test_parts_that_do_not_fit_end_a_run_before_its_first_update(tmp_path):
    for wrong, said in (
        ("search.name=beam", r"^search\.name: beam: it needs a model that predicts the next token"),
        ("validation.search.name=greedy", r"validation\.search\.name: greedy: it needs a model"),
        (
            "criterion.name=label_smoothed_cross_entropy",
            r"^criterion\.name: label_smoothed_cross_entropy: it needs",
        ),
        (
            "architecture.name=transformer",
            r"^criterion\.name: cmlm: it fills in masks, which Transformer has",
        ),
    ):
        settings = OURS[:1] + OURS[2:] if wrong.startswith("arch") else OURS
        with pytest.raises(mtplug.errors.MtplugError, match=said):
            testing.train(tmp_path, *settings, wrong, name="wrong")
        assert not (tmp_path / "wrong").exists()


def test_a_dry_run_asks_for_no_search_that_the_run_has_no_use_for(tmp_path, capsys):
    """The default one, which is for a test set, tells next tokens."""
    line = [str(write_corpus(tmp_path)), f"data.root={tmp_path}", "--dry-run"]
    ours = [setting for setting in OURS if not setting.startswith("search.")]
    assert train([*line, *ours, "data.test=null"]) == 0
    assert train([*line, *ours]) == 2
    assert "search.name: beam: it needs a model that predicts" in capsys.readouterr().err
