"""Scores against sacreBLEU itself, and significance against its own tests."""

import json

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric as Theirs

from mtplug.cli.score import main
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score, metrics, scored
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


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_CN", "ZH_hant"])
def test_chinese_is_cut_into_characters(language):
    score = Bleu(BleuConfig(), language).score(["我有一双鞋。"], [["我有一双鞋。"]])
    assert score.value == pytest.approx(100) and "|tok:zh|" in score.signature
    error = Ter(TerConfig(), language).score(["我有一双鞋。"], [["我有一只鞋。"]])
    assert error.value == pytest.approx(100 / 6) and "|asian:yes|" in error.signature


@pytest.mark.parametrize("language", ["de", "de-AT", "DE_ch"])
def test_moses_flavour_is_lower_cased_tokenised_bleu(language):
    """The same as sacreBLEU without tokenisation on text that sacremoses has cut."""
    sacremoses = pytest.importorskip("sacremoses")
    cut = sacremoses.MosesTokenizer(lang="de").tokenize
    hypotheses, references = ["Ein Mann, der läuft."] * 2, ["Ein Hund, der läuft."] * 2
    expected = sacrebleu.corpus_bleu(
        [cut(h, return_str=True).lower() for h in hypotheses],
        [[cut(r, return_str=True).lower() for r in references]], tokenize="none", force=True,
    )  # fmt: skip
    config = BleuConfig(tokenize="moses", lowercase=True)
    score = Bleu(config, language).score(hypotheses, [references])
    assert score.value == pytest.approx(expected.score)
    assert "case:lc" in score.signature and "tok:moses-de-sacremoses" in score.signature


def test_length_ratio_is_that_of_bleu_with_the_nearest_reference():
    metric = LengthRatio(LengthRatioConfig(), "en")
    references = [REFERENCES, ["one", "two", "three", "Nothing there ."]]
    score = metric.score(HYPOTHESES, references)
    bleu = sacrebleu.corpus_bleu(HYPOTHESES, references)
    assert score.value == bleu.sys_len / bleu.ref_len and metric.higher_is_better is None
    assert score.signature.startswith("nrefs:2|tok:13a|version:")


@pytest.mark.parametrize(
    ("name", "theirs"), [("bleu", BLEU()), ("chrf", CHRF(word_order=2)), ("ter", TER())]
)
@pytest.mark.parametrize("second", ["same", "missing", "none"])
def test_a_part_at_a_time_gives_the_numbers_of_the_whole(name, theirs, second, monkeypatch):
    """Of all sentences at once, chrF's n-grams took 40 kB a line."""
    monkeypatch.setattr(metrics, "PART", 3)
    cache, sizes = theirs.__class__._cache_references, []
    monkeypatch.setattr(
        theirs.__class__,
        "_cache_references",
        lambda self, refs: (sizes.append(len(refs[0])), cache(self, refs))[1],
    )
    hypotheses, references = [side * 5 for side in (HYPOTHESES, REFERENCES)]
    several = [references, ["A dog, over there.", "", "Talking women", "Nothing"] * 5]
    if second == "missing":  # as sacreBLEU takes a sentence with fewer references than others
        several[1][3:6] = [None] * 3
    several = several[: 1 if second == "none" else 2]
    (metric,) = named_metrics(name)
    rows, compute = metric.statistics(hypotheses, several)
    score = metric.score(hypotheses, several)
    assert max(sizes) == 3
    expected = theirs.corpus_score(hypotheses, several)
    assert score.value == expected.score and score.signature == str(theirs.get_signature())
    assert score.text == expected.format(width=2).replace("\n", " ")
    assert rows.tolist() == theirs._extract_corpus_statistics(hypotheses, several)
    assert compute(rows.sum(0)) == pytest.approx(expected.score)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter", "length_ratio"])
def test_a_score_is_of_the_texts_that_were_given_and_of_no_earlier_ones(name):
    (metric,) = named_metrics(name)
    hypotheses = list(HYPOTHESES)
    metric.score(hypotheses, [REFERENCES])
    hypotheses[0] = "Something else now."
    changed, (rows, _) = (f(hypotheses, [REFERENCES]) for f in (metric.score, metric.statistics))
    (fresh,) = named_metrics(name)
    assert (rows == fresh.statistics(hypotheses, [REFERENCES])[0]).all()
    assert changed == fresh.score(hypotheses, [REFERENCES])
    assert metric.score(HYPOTHESES, [HYPOTHESES]) == fresh.score(HYPOTHESES, [HYPOTHESES])


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


def test_the_command_looks_at_each_file_once_for_each_metric(tmp_path, capsys, monkeypatch):
    """Scores and significance each did, and the baseline was looked at once more for each system."""
    seen = []
    extract = Theirs._extract_corpus_statistics

    def counted(self, hypotheses, references):
        seen.append((type(self).__name__, hypotheses[-1]))
        return extract(self, hypotheses, references)

    monkeypatch.setattr(Theirs, "_extract_corpus_statistics", counted)
    texts = {name: ["a cat", name] for name in ("ours", "other", "base", "ref")}
    ours, other, base, ref = files(tmp_path, **texts)
    line = [ours, other, "--ref", ref, "--baseline", base, "--samples", "10"]
    assert main([*map(str, line), "--metrics", "bleu,chrf,ter", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert sorted(seen) == sorted(
        (metric, text) for metric in ("BLEU", "CHRF", "TER") for text in ("ours", "other", "base")
    )


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
