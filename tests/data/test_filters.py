"""Filters of training pairs, against pairs of which one sees what should become of them."""

import json
import random

import pytest

from mtplug import UserError, testing
from mtplug.config import load_config
from mtplug.config.schema import FilterConfig
from mtplug.data.corpora import Corpus
from mtplug.data.filters import EXAMPLES, filtered, summary
from mtplug.data.hashes import HashSet
from mtplug.data.scripts import ScriptShare, script_of, scripts_of


class Pairs(Corpus):
    def __init__(self, pairs, languages=("en", "de")):
        super().__init__(None, languages)
        self.pairs = pairs

    def files(self):
        return ["made-up"]

    def __iter__(self):
        return iter(self.pairs)


def kept(pairs, languages=("en", "de"), **settings):
    """The pairs that stay, and how many each filter dropped."""
    corpus = filtered(Pairs(pairs, languages), FilterConfig(**settings))
    found = list(corpus)
    return found, {name: d.count for name, d in corpus.report.dropped.items()}


GOOD = ("A dog runs.", "Ein Hund rennt.")


@pytest.mark.parametrize(
    ("settings", "bad", "name"),
    [
        ({"min_length": 2}, ("Dog", "Ein Hund"), "length"),
        ({"max_length": 4}, ("A dog runs.", "Ein Hund rennt und rennt."), "length"),
        ({"max_length": 16, "unit": "characters"}, ("A dog runs.", "Ein Hund rennt zu."), "length"),
        ({"max_ratio": 1.5}, ("A dog", "Ein Hund rennt und"), "ratio"),
        ({"max_ratio": 1.5, "unit": "characters"}, ("A dog!", "Ein Hundchen"), "ratio"),
        ({"copies": True}, ("Berlin", "Berlin"), "copies"),
        ({"script": 0.5}, ("A dog", "Собака"), "script"),
        ({"script": 0.5, "source_scripts": ["Latin"]}, ("狗 dog 在跑步呢", "Ein Hund"), "script"),
        ({"duplicates": True}, GOOD, "duplicates"),
    ],
)
def test_each_filter_drops_what_it_is_for_and_counts_it(settings, bad, name):
    assert kept([GOOD, bad], **settings) == ([GOOD], {name: 1})


def test_limits_themselves_are_kept():
    pair = ("a b", "a b c d")
    settings = {"min_length": 2, "max_length": 4, "max_ratio": 2}
    assert kept([pair], **settings) == ([pair], {"length": 0, "ratio": 0})


def test_without_a_filter_the_corpus_is_the_same_object():
    corpus = Pairs([GOOD])
    assert filtered(corpus, FilterConfig()) is corpus


def test_empty_sides_are_left_to_the_store_that_counts_them():
    pairs = [("", "Ein Hund"), ("A dog", "")]
    assert kept(pairs, min_length=1, max_ratio=2, script=0.9, copies=True)[0] == pairs


def test_ends_of_documents_are_no_duplicates():
    lines = [GOOD, ("", ""), ("One dog", "Ein Hund"), ("", ""), GOOD, ("", "")]
    assert kept(lines, duplicates=True) == ([*lines[:4], lines[5]], {"duplicates": 1})


def test_a_pair_counts_once_and_its_first_good_copy_stays():
    long = ("a " * 50, "b " * 50)
    pairs = [long, GOOD, long, GOOD]
    assert kept(pairs, max_length=9, duplicates=True) == ([GOOD], {"length": 2, "duplicates": 1})
    # The same target under another source is no duplicate.
    other = ("The dog runs.", GOOD[1])
    assert kept([GOOD, other], duplicates=True)[0] == [GOOD, other]


def test_every_iteration_filters_alike():
    corpus = filtered(Pairs([GOOD, GOOD]), FilterConfig(duplicates=True))
    assert list(corpus) == list(corpus) == [GOOD]
    assert corpus.report.read == 2


def test_report_says_how_many_and_why():
    bad = [("word " * n, "Wort") for n in range(5, 15)]
    corpus = filtered(Pairs([GOOD, *bad]), FilterConfig(max_ratio=4))
    list(corpus)
    report = corpus.report.to_json()
    assert (report["read"], report["kept"]) == (11, 1)
    ratio = report["dropped"]["ratio"]
    assert ratio["count"] == 10 and ratio["share"] == pytest.approx(10 / 11)
    assert len(ratio["examples"]) == EXAMPLES
    told = summary("train", report)
    assert told[0] == "filters: train: 1 of 11 pairs kept, 10 dropped (90.91%)"
    assert told[1].startswith("  ratio: 10 (90.91%), such as pair 2 (5 words against 1): word word")
    assert ratio["examples"][0] == {
        "pair": 2, "source": bad[0][0], "target": "Wort", "why": "5 words against 1"
    }  # fmt: skip


def test_if_nothing_is_left_the_error_says_which_filters_did_it():
    with pytest.raises(UserError, match=r"made-up: data\.filters dropped all 2 pairs: length 2"):
        kept([GOOD, GOOD], min_length=50)


# One sentence in each script, from the Universal Declaration of Human Rights, article 1.
WRITTEN = {
    "en": "All human beings are born free and equal",
    "de": "Alle Menschen sind frei und gleich an Würde geboren",
    "vi": "Tất cả mọi người sinh ra đều được tự do",
    "ru": "Все люди рождаются свободными и равными",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
    "ja": "すべての人間は、生まれながらにして自由であり、コーヒー",
    "ko": "모든 인간은 태어날 때부터 자유로우며",
    "ar": "يولد جميع الناس أحرارا متساوين",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "he": "כל בני האדם נולדו בני חורין",
    "ka": "ყველა ადამიანი იბადება თავისუფალი",
}


@pytest.mark.parametrize("language", WRITTEN)
def test_text_is_wholly_in_the_scripts_of_its_language_and_of_no_unrelated_one(language):
    shares = {
        other: ScriptShare(scripts_of(language))(text)
        for other, text in WRITTEN.items()
        if not set(scripts_of(other)) & set(scripts_of(language)) or other == language
    }
    assert shares.pop(language) == 1
    assert set(shares.values()) == {0}


def test_share_counts_letters_only():
    share = ScriptShare(("Latin",))
    assert share("abc д 12 !?") == 0.75
    assert share("12:30 – 😀") == 1
    assert [script_of(c) for c in "aアｱ々Ａ1µ"] == ["Latin", "Katakana", "Katakana", "Han", "Latin", "", ""]  # fmt: skip


def test_scripts_of_languages_follow_the_code():
    assert scripts_of("de-AT") == ("Latin",)
    assert scripts_of("sr-Latn") == scripts_of("sr_latn") == ("Latin",)
    assert scripts_of("zh-Hant-TW") == ("Han",)
    with pytest.raises(UserError, match=r"language 'xx' is not known; .*source_scripts"):
        scripts_of("xx")
    with pytest.raises(UserError, match=r"source_scripts: 'Latn' is no script.*'Latin'"):
        kept([GOOD], script=0.5, source_scripts=["Latn"])


def test_hash_set_is_a_set_through_all_its_doublings():
    rng = random.Random(1)
    texts = [str(rng.randrange(3000)) for _ in range(6000)]
    ours, theirs = HashSet(), set()
    for text in texts:
        assert ours.add(text) == (text not in theirs)
        theirs.add(text)
    assert len(ours) == len(theirs) > 1000  # the first table has 1,024 places


def test_hash_set_needs_at_most_24_bytes_for_each_text():
    ours = HashSet()
    for i in range(50_000):
        ours.add(str(i))
    assert 12 <= len(ours._table) * 8 / len(ours) <= 24


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("max_ratio=0.5", "max_ratio must be 0"),
        ("script=50", "script must be from 0 to 1"),
        ("min_lenght=1", "did you mean 'min_length'"),
        ("{min_length: 5, max_length: 3}", "max_length 3 is below min_length 5"),
    ],
)
def test_wrong_settings_are_told(tmp_path, setting, message):
    config = testing.write_corpus(tmp_path)
    group = "data.filters=" if setting.startswith("{") else "data.filters."
    with pytest.raises(UserError, match=message):
        load_config(config, [group + setting])


def test_run_filters_training_data_only_and_keeps_the_report(tmp_path):
    testing.write_corpus(tmp_path)
    for split in ("train", "valid"):
        for side in ("xx", "en"):
            with (tmp_path / f"{split}.{side}").open("a") as file:
                file.write("ka\n")  # a copy
    settings = ["data.filters.copies=true"]
    run = testing.train(tmp_path, *settings)
    report = json.loads((run / "data" / "filters.json").read_text())["train-0"]
    assert (report["read"], report["kept"], report["dropped"]["copies"]["count"]) == (401, 400, 1)
    assert json.loads((run / "data/train-0/store.json").read_text())["counts"]["pairs"] == 400
    plan = load_config(tmp_path / "run.yaml", [f"data.root={tmp_path}", *settings])[0]
    assert len(plan.task.build().pairs(plan, "valid")[0][1]) == 21
    with pytest.raises(UserError, match=r"begun with data\.filters\.copies=true, not false"):
        testing.train(tmp_path)


def test_report_is_printed_again_when_the_store_is_only_opened(tmp_path, capsys):
    from mtplug.training.run import prepare

    config = testing.write_corpus(tmp_path)
    settings = [
        f"data.root={tmp_path}",
        f"run_dir={tmp_path / 'run'}",
        "data.filters.duplicates=true",
    ]
    printed = []
    for _ in range(2):
        lines = []
        prepare(load_config(config, settings)[0], lines.append)
        printed.append([line for line in lines if line.startswith(("filters:", "  duplicates:"))])
    assert printed[0] == printed[1] and len(printed[0]) == 2
    stamp = (tmp_path / "run/data/train-0/store.json").stat().st_mtime_ns
    prepare(load_config(config, settings[:2])[0], lines.append)
    assert (tmp_path / "run/data/train-0/store.json").stat().st_mtime_ns != stamp


def test_without_a_store_the_report_is_the_same_and_without_filters_there_is_none(tmp_path):
    testing.write_corpus(tmp_path)
    for side in ("xx", "en"):
        with (tmp_path / f"train.{side}").open("a") as file:
            file.write("ka\n")  # a copy
    settings = ["data.filters.copies=true"]
    stored, read = (
        json.loads(
            (
                testing.train(tmp_path, *settings, *more, name=name) / "data" / "filters.json"
            ).read_text()
        )
        for name, more in (("stored", ()), ("read", ("data.store=false",)))
    )
    assert stored == read and stored["train-0"]["dropped"]["copies"]["count"] == 1

    from mtplug.training.run import prepare

    here, lines = [f"data.root={tmp_path}", f"run_dir={tmp_path / 'other'}"], []
    for more in (settings, []):
        prepare(load_config(tmp_path / "run.yaml", [*here, *more])[0], lines.append)
    assert json.loads((tmp_path / "other" / "data" / "filters.json").read_text()) == {}
