"""The metric around unbabel-comet, for which a module stands that judges by words in common."""

import sys
import types

import pytest

import mtplug
from mtplug import testing
from mtplug.cli import score
from mtplug.config import component_from_overrides


class Judge:
    def predict(self, rows, batch_size, gpus, progress_bar):
        def judged(row):
            written, wanted = row["mt"].split(), row["ref"].split()
            right = sum(a == b for a, b in zip(written, wanted, strict=False))
            return right / len(wanted) + 0.01 * len(row["src"].split())

        return {"scores": [judged(row) for row in rows], "system_score": None}


@pytest.fixture
def comet(monkeypatch):
    made = types.ModuleType("comet")
    made.loaded = []
    made.download_model = lambda name: f"downloaded/{name}"
    made.load_from_checkpoint = lambda path: made.loaded.append(path) or Judge()
    monkeypatch.setitem(sys.modules, "comet", made)
    return made


def metric(*settings):
    return component_from_overrides("metrics", "comet", list(settings)).build("en")


def test_it_keeps_its_contract(comet):
    testing.check_metric("comet")


def test_mean_over_sentences_with_the_best_reference(comet):
    one = metric()
    found = one.score(["a b", "c d"], [["a b", "x y"], ["a x", "c y"]], ["s", "s s"])
    # 1 + 0.01 with the first reference, 1/2 + 0.02 with the second
    assert found.value == pytest.approx((1.01 + 0.52) / 2)
    assert found.signature.startswith("nrefs:2|model:Unbabel/wmt22-comet-da|")
    one.score(["a"], [["a"]], ["s"])
    assert comet.loaded == ["downloaded/Unbabel/wmt22-comet-da"]  # once


def test_file_of_a_checkpoint_is_not_downloaded(comet, tmp_path):
    (tmp_path / "own.ckpt").touch()
    metric(f"model={tmp_path / 'own.ckpt'}").score(["a"], [["a"]], ["s"])
    assert comet.loaded == [str(tmp_path / "own.ckpt")]


def test_file_that_is_no_checkpoint_is_refused_in_one_line(comet, tmp_path):
    def refuse(path):
        raise Exception("hparams.yaml file is missing")

    comet.load_from_checkpoint = refuse
    (tmp_path / "own.ckpt").touch()
    said = f"metric comet: model={tmp_path}/own.ckpt cannot be loaded: hparams.yaml file is missing"
    with pytest.raises(mtplug.UserError, match=said):
        metric(f"model={tmp_path / 'own.ckpt'}").score(["a"], [["a"]], ["s"])


def test_command_scores_with_the_source(comet, tmp_path, capsys):
    for name, text in (("hyp", "a b\nc\n"), ("ref", "a b\nc\n"), ("src", "s\ns s s\n")):
        (tmp_path / name).write_text(text)
    line = [str(tmp_path / "hyp"), "--ref", str(tmp_path / "ref"), "--metrics", "comet"]
    assert score.main([*line, "--source", str(tmp_path / "src")]) == 0
    assert "COMET = 1.0200" in capsys.readouterr().out
    assert score.main(line) == 2
    assert "metric comet needs the source text: --source FILE" in capsys.readouterr().err


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "comet", None)
    with pytest.raises(mtplug.UserError, match="pip install unbabel-comet"):
        metric().score(["a"], [["a"]], ["s"])
