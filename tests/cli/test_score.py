"""mtplug-score on files."""

import gzip
import json

import pytest
import sacrebleu

from mtplug.cli import evaluate
from mtplug.cli.score import main

REF = ["the dog runs over the grass", "a man with a hat", "two women talk"]
HYP = ["the dog runs on the grass", "a man with hat", "two women"]


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, lines in texts.items():
            (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return [str(tmp_path / name) for name in texts]

    return write


def scored(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_several_systems_and_references(files, capsys):
    hyp, other, base, ref, ref2 = files(hyp=HYP, other=REF, base=HYP[::-1], ref=REF, ref2=HYP[::-1])
    rows = scored(
        capsys, hyp, other, "--ref", ref, "--ref", ref2, "--baseline", base, "--samples", "30"
    )
    assert [(r["system"], r["metric"]) for r in rows[::4]] == [(hyp, "bleu"), (other, "bleu")]
    assert rows[0]["score"] == pytest.approx(sacrebleu.corpus_bleu(HYP, [REF, HYP[::-1]]).score)
    assert all(r["difference"] == pytest.approx(r["score"] - r["baseline"]) for r in rows)
    assert {(r["test"], r["samples"], r["seed"]) for r in rows} == {("bootstrap", 30, 12345)}


def test_packed_files_and_separators_within_lines(files, tmp_path, capsys):
    texts = ["one\u2028two", "three\x0bfour", "five\x85six"]
    hyp, ref = files(hyp=texts, ref=texts)
    (tmp_path / "packed.gz").write_bytes(gzip.compress((tmp_path / "ref").read_bytes()))
    packed = str(tmp_path / "packed.gz")
    assert scored(capsys, hyp, "--ref", packed) == scored(capsys, hyp, "--ref", ref)


def test_metrics_of_plugins_are_scored_and_said_not_to_be_testable(files, tmp_path, capsys):
    from mtplug import plugins

    before = plugins._current
    plugin = tmp_path / "exact.py"
    plugin.write_text((plugins.Path(plugins.__file__).parent / "templates/metric.py").read_text())
    hyp, ref = files(hyp=[REF[0], *HYP[1:]], ref=REF)
    options = ["--ref", ref, "--baseline", ref, "--metrics", "ter,NAME", "--plugin", str(plugin)]
    try:
        rows = scored(capsys, hyp, *options, "--samples", "20")
        assert [r["metric"] for r in rows] == ["ter", "NAME"]
        assert rows[1]["score"] == pytest.approx(100 / 3) and rows[1]["p"] is None
        assert main([hyp, *options, "--samples", "20"]) == 0
        assert "cannot be tested" in capsys.readouterr().out
    finally:
        plugins._current = before


def test_metrics_take_settings_as_a_configuration_has_them(files, capsys):
    """They were cut at the commas between them, so that no metric could be given any."""
    hyp, ref = files(hyp=["The dog runs.", *HYP[1:]], ref=REF)
    texts = ["The dog runs.", *HYP[1:]]
    given = "[bleu, {name: bleu, tokenize: char, lowercase: false}, {name: chrf, word_order: 0, label: plain}]"
    options = ["--ref", ref, "--tokenize", "intl", "--lowercase", "--metrics"]
    rows = scored(capsys, hyp, *options, given)
    expected = [
        ("bleu", sacrebleu.BLEU(tokenize="intl", lowercase=True)),  # what the other options say
        ("bleu", sacrebleu.BLEU(tokenize="char")),
        ("plain", sacrebleu.CHRF(word_order=0)),
    ]
    assert [(r["metric"], r["score"], r["signature"]) for r in rows] == [
        (label, theirs.corpus_score(texts, [REF]).score, str(theirs.get_signature()))
        for label, theirs in expected
    ]
    (one,) = scored(capsys, hyp, *options, " {name: chrf, word_order: 0}")
    assert one["score"] == rows[2]["score"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "blue"], "did you mean 'bleu'"),
        (["--metrics", "[ter, {name: blue}]"], "--metrics.1.name: unknown metric 'blue'; did you"),
        (
            ["--metrics", "{name: chrf, word_ordr: 0}"],
            "'word_ordr' of --metrics.0; did you mean 'word_order'",
        ),
        (["--metrics", "{name: chrf, word_order: a}"], "expected a whole number, got 'a'"),
        (["--metrics", "{name: bleu"], "no valid YAML"),
        (["--metrics", "[]"], "names no metric"),
        (["--tokenize", "xx"], "metric bleu does not know it; known: auto, 13a, zh"),
        (["--baseline", "ref", "--compare", "."], ".: Is a directory"),
        (["--baseline", "ref", "--compare", "hyp"], "--compare hyp: that is HYP; write to another"),
        (["--baseline", "short", "--compare", "ref"], "--compare ref: that is --ref;"),
        (["--baseline", "short", "--compare", "short"], "--compare short: that is --baseline;"),
        (["--metrics", ","], "names no metric"),
        (["--samples", "0"], "--samples 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--compare", "x.html"], "--compare needs --baseline"),
        (["--source", "x"], "--source is for the page"),
        (["--baseline", "short"], "short has 2 lines, hyp has 3"),
        (["--baseline", "bad.gz"], "bad.gz:53: the packed file is cut off here"),
        (["--baseline", "."], "Is a directory"),
    ],
)
def test_mistakes_are_one_line(options, message, files, tmp_path, capsys, monkeypatch):
    files(hyp=HYP, ref=REF, short=REF[:2])
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b"text\n" * 99)[:20])
    monkeypatch.chdir(tmp_path)
    assert main(["hyp", "--ref", "ref", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "hyp").read_text().splitlines() == HYP


def test_evaluate_gives_the_score_of_its_files(tiny_run, tmp_path, capsys):
    """One scorer: what mtplug-evaluate says is what mtplug-score says of the translations that it wrote."""
    import mtplug
    from mtplug.translator import load_run

    options = [str(tiny_run), "--split", "valid", "--json", "--output", str(tmp_path)]
    assert evaluate.main(options) == 0
    said = json.loads(capsys.readouterr().out)["valid"]["bleu"]
    run = load_run(tiny_run, [])
    pairs = mtplug.load(tiny_run).task.pairs(run, "valid")[0][1]
    (tmp_path / "ref").write_text("".join(f"{r}\n" for _, r in pairs))
    row, *_ = scored(capsys, str(tmp_path / "valid.txt"), "--ref", str(tmp_path / "ref"))
    assert {k: row[k] for k in ("score", "signature")} == said
