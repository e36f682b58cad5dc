"""Scores against sacreBLEU itself, and significance against its own tests."""

import json

import pytest
import sacrebleu

from mtplug.cli.score import main
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score, scored
from mtplug.evaluation.files import named_metrics
from mtplug.evaluation.metrics import (
    Bleu,
    BleuConfig,
    Chrf,
    ChrfConfig,
    LengthRatio,
    LengthRatioConfig,
    Ter,
    TerConfig,
)

HYPOTHESES = ["The dog runs over the grass .", "A man, with a hat!", "two women", "Nothing here."]
REFERENCES = [
    "The dog runs across the grass.",
    "A man with a hat.",
    "Two women talk",
    "Something else.",
]


def test_scores_and_signatures_are_sacrebleus():
    bleu = Bleu(BleuConfig(), "en").score(HYPOTHESES, [REFERENCES])
    assert bleu.value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert "|tok:13a|" in bleu.signature and "case:mixed" in bleu.signature
    chrf = Chrf(ChrfConfig(), "en").score(HYPOTHESES, [REFERENCES])
    assert chrf.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert chrf.text.startswith("chrF2++") and "nw:2" in chrf.signature
    ter = Ter(TerConfig(), "en").score(HYPOTHESES, [REFERENCES])
    assert ter.value == sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score


def test_chinese_is_cut_into_characters():
    score = Bleu(BleuConfig(), "zh").score(["我有一双鞋。"], [["我有一双鞋。"]])
    assert score.value == pytest.approx(100) and "|tok:zh|" in score.signature


def test_moses_flavour_is_lower_cased_tokenised_bleu():
    """The same as sacreBLEU without tokenisation on text that sacremoses has cut."""
    sacremoses = pytest.importorskip("sacremoses")
    cut = sacremoses.MosesTokenizer(lang="de").tokenize
    hypotheses, references = ["Ein Mann, der läuft."] * 2, ["Ein Hund, der läuft."] * 2
    expected = sacrebleu.corpus_bleu(
        [cut(h, return_str=True).lower() for h in hypotheses],
        [[cut(r, return_str=True).lower() for r in references]], tokenize="none", force=True,
    )  # fmt: skip
    config = BleuConfig(tokenize="moses", lowercase=True)
    score = Bleu(config, "de").score(hypotheses, [references])
    assert score.value == pytest.approx(expected.score)
    assert "case:lc" in score.signature and "tok:moses-de-sacremoses" in score.signature


def test_length_ratio_is_that_of_bleu_with_the_nearest_reference():
    metric = LengthRatio(LengthRatioConfig(), "en")
    references = [REFERENCES, ["one", "two", "three", "Nothing there ."]]
    score = metric.score(HYPOTHESES, references)
    bleu = sacrebleu.corpus_bleu(HYPOTHESES, references)
    assert score.value == bleu.sys_len / bleu.ref_len and metric.higher_is_better is None
    assert score.signature.startswith("nrefs:2|tok:13a|version:")


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter", "length_ratio"])
def test_statistics_of_any_subset_sum_to_its_score(name):
    """So that buckets and resamples are scored as files are."""
    (metric,) = named_metrics(name)
    rows, compute = metric.statistics(HYPOTHESES, [REFERENCES])
    for pick in ([0], [1, 3], [0, 0, 2]):
        of = [[side[i] for i in pick] for side in (HYPOTHESES, REFERENCES)]
        assert compute(rows[pick].sum(0)) == pytest.approx(metric.score(of[0], [of[1]]).value)


def files(tmp_path, **texts):
    for name, lines in texts.items():
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    return [str(tmp_path / name) for name in texts]


def test_command_scores_files_and_compares(tmp_path, capsys):
    hyp, ref, base = files(tmp_path, hyp=HYPOTHESES, ref=REFERENCES, base=REFERENCES)
    assert main([hyp, "--ref", ref, "--baseline", base, "--samples", "50"]) == 0
    out = capsys.readouterr().out
    for part in ("BLEU = ", "chrF2++ = ", "TER = ", "version:", "baseline 100.00", "p = "):
        assert part in out
    assert main([hyp, "--ref", ref, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["score"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score


def test_command_tells_what_is_wrong_with_files(tmp_path, capsys):
    hyp, ref, empty = files(tmp_path, hyp=HYPOTHESES, ref=REFERENCES[:-1], empty=[])
    for args, message in (
        ([hyp, "--ref", ref], "has 3 lines"),
        ([hyp, "--ref", empty], "is empty"),
        ([hyp, "--ref", str(tmp_path / "none")], "No such file or directory"),
        ([hyp, "--ref", hyp, "--tokenize", "magic"], "magic"),
    ):
        assert main(args) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("given", [0.5, Score("odd", "many", "none", "many")])
def test_metric_that_gives_no_score_is_named(given):
    class Odd(Metric):
        label = "odd"

        def score(self, hypotheses, references):
            return given

    said = r"metric odd \(tests.evaluation.test_metrics.*Odd\) gives .*; it has to be a Score"
    with pytest.raises(UserError, match=said):
        scored(Odd(), ["a"], [["a"]], None)
