"""Documents: windows of sentences in training and translation."""

import json
import random
import re
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtplug import testing
from mtplug.adapters import SwitchingTranslator
from mtplug.cli.lines import groups
from mtplug.config import load_config
from mtplug.data.separated import SEPARATOR, Separated, together, windows
from mtplug.data.tokenizers import UNK, SentencePieceConfig, SentencePieceFactory
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score
from mtplug.search.base import Hypothesis, SearchStrategy
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.combine import same_vocabulary
from mtplug.search.shortlist import Lexicon
from mtplug.search.wishes import Wishes
from mtplug.training.run import evaluate
from mtplug.training.validation import Validation
from mtplug.translator import Translator
from mtplug.translator.windows import _cut
from tests import tiny

TASK = "task={name: documents, source_lang: xx, target_lang: en, window: 4}"
LINES = "ka lo\nlo\nmi\n\nnu pe\nra\nso\nti\nvu\nwe ka\n"


# --- which sentences go together ----------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "documents", "most", "limit", "expected"), [
    ([3, 3, 3, 3, 3], "aaaaa", 2, 99, [[0, 1], [2, 3], [4]]),
    ([3] * 9, "a" * 9, 8, 99, [[0, 1, 2, 3, 4], [5, 6, 7, 8]]),  # evenly, not 8 and 1
    ([3] * 5, "aabbb", 8, 99, [[0, 1], [2, 3, 4]]),
    ([3] * 3, "aaa", 8, 11, [[0, 1, 2]]),  # 9 tokens and two separators
    ([3] * 3, "aaa", 8, 10, [[0, 1], [2]]),
    ([30, 3, 3], "aaa", 8, 10, [[0], [1, 2]]),  # one that is too long is not left out
    ([], "", 8, 10, []),
])  # fmt: skip
def test_windows(lengths, documents, most, limit, expected):
    assert windows([(n,) for n in lengths], list(documents), most, limit) == expected


def test_none_stands_by_itself():
    assert windows([(1,)] * 4, ["a", None, None, "a"], 4, 99) == [[0], [1], [2], [3]]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from([None, "a", "b"]))),
       st.integers(1, 6), st.integers(1, 30))  # fmt: skip
def test_windows_hold_every_sentence_once_and_no_more_than_they_may(rows, most, limit):
    sizes, documents = [row[:2] for row in rows], [row[2] for row in rows]
    found = windows(sizes, documents, most, limit)
    assert [n for one in found for n in one] == list(range(len(rows)))
    for one in found:
        assert len(one) <= most and len({documents[n] for n in one}) == 1
        if len(one) > 1:
            assert documents[one[0]] is not None
            for side in (0, 1):
                assert sum(sizes[n][side] for n in one) + len(one) - 1 <= limit


# --- the separator ------------------------------------------------------------------------------

TEXTS = [" ".join(tiny.pairs(1, n)[0]) for n in range(200)]


@pytest.mark.parametrize("keep_blanks", [False, True])
def test_sentences_are_cut_as_when_they_stand_alone(keep_blanks):
    config = SentencePieceConfig(vocab_size=36, keep_blanks=keep_blanks, model_type="unigram")
    inner = SentencePieceFactory(config).train(iter(TEXTS), "joint")
    tokenizer = Separated(inner)
    a, b, c = "ka lo mi", "one  nine two", "ten"
    alone = inner.encode([a, b, c])
    (ids,) = tokenizer.encode([together([a, b, c])])
    assert tokenizer.parts(ids) == alone and ids.count(len(inner)) == 2
    assert len(tokenizer) == len(inner) + 1 == tokenizer.separator + 1
    assert tokenizer.decode([ids, alone[0]]) == [together(inner.decode(alone)), a]
    assert tokenizer.tokens(ids)[len(alone[0])] == SEPARATOR
    assert tokenizer.encode([a, "", f"{a}{SEPARATOR}"]) == [
        alone[0],
        [],
        [*alone[0], tokenizer.separator],
    ]
    drawn = tokenizer.sample([together([a, b])] * 20, list(range(20)))
    assert {tuple(inner.decode(tokenizer.parts(row))) for row in drawn} == {
        tuple(inner.decode(alone[:2]))
    }


# --- what is learnt from ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("documents")
    tiny.write_corpus(made)
    translated = re.sub(r"[a-z]+", lambda word: tiny.LEXICON[word[0]], LINES)
    for split in ("valid", "test"):
        (made / f"{split}.xx").write_text(LINES)
        (made / f"{split}.en").write_text(translated)
    return made


def configured(folder, name, *more):
    line = [f"run_dir={folder / name}", f"data.root={folder}", TASK, *more]
    return load_config(folder / "run.yaml", line)[0]


def prepared(folder, name, *more):
    run = configured(folder, name, *more)
    task = run.task.build()
    (folder / name).mkdir(exist_ok=True)
    task.prepare(run, folder / name, lambda text: None)
    return run, task


WORDS = ("data.train={source: valid.xx, target: valid.en}", "tokenizer.name=words")
FIRST, SECOND = ["ka lo", "lo", "mi"], ["nu pe", "ra", "so", "ti", "vu", "we ka"]
LARGEST = [together(FIRST), together(SECOND[:3]), together(SECOND[3:])]


def sources_of(task):
    (store,) = task.stores
    return task.source_tokenizer.decode([source.tolist() for source, _ in store])


def test_training_has_windows_of_every_size(folder):
    run, task = prepared(folder, "sizes", *WORDS)
    in_twos = [together(SECOND[n : n + 2]) for n in (0, 2, 4)]
    expected = [*FIRST, together(FIRST[:2]), LARGEST[0], *SECOND, *in_twos, *LARGEST[1:]]
    assert sources_of(task) == expected
    targets = [target.tolist() for _, target in task.stores[0]]
    assert task.target_tokenizer.decode(targets) == [
        re.sub(r"\b[a-z][a-z]\b", lambda word: tiny.LEXICON[word[0]], text) for text in expected
    ]
    # What a validation's loss is of, and what a shortlist is learnt from.
    assert [source for source, _ in task.units(run, "train", task.pairs(run, "train"))] == LARGEST


def test_a_window_has_no_more_tokens_than_max_length(folder):
    _, task = prepared(folder, "short", *WORDS, "data.max_length=4", "data.on_long=error")
    assert max(len(side) for pair in task.stores[0] for side in pair) == 4
    assert together(FIRST) not in sources_of(task)
    assert set(FIRST + SECOND) <= set(sources_of(task))


def test_a_corpus_of_single_sentences_among_documents(folder):
    alone = "data.train={source: valid.xx, target: valid.en, documents: false}"
    _, task = prepared(folder, "alone", WORDS[1], alone)
    assert sources_of(task) == FIRST + SECOND
    run = configured(
        folder, "alone", "data.test={source: test.xx, target: test.en, documents: false}"
    )
    assert (run.task.build().windows(run, "valid"), run.task.build().windows(run, "test")) == (
        [4],
        [1],
    )


def test_filters_leave_ends_of_documents(folder):
    strict = "data.filters={copies: true, duplicates: true, script: 0.5, source_scripts: [Latin], min_length: 1}"
    _, task = prepared(folder, "filtered", *WORDS, strict)
    assert [text for text in sources_of(task) if text in LARGEST] == LARGEST


def test_of_a_stretch_is_as_much_in_memory(folder, monkeypatch):
    monkeypatch.setattr("mtplug.tasks.documents.STRETCH", 3)
    _, task = prepared(folder, "stretches", *WORDS)
    assert [text for text in sources_of(task) if text in LARGEST] == LARGEST
    assert len(sources_of(task)) == 5 + 5 + 5


def test_with_language_tags_each_window_has_one(folder):
    tagged = (
        "task={name: documents, source_lang: xx, target_lang: en, window: 4, language_tags: true}"
    )
    run, task = prepared(folder, "tagged", *WORDS, tagged, "data.max_length=7")
    sources = [source.tolist() for source, _ in task.stores[0]]
    assert max(map(len, sources)) == 7  # ka lo <sep> lo <sep> mi and its tag
    (tag,) = task.source_tokenizer.prefixes
    assert all(ids[0] == tag and tag not in ids[1:] for ids in sources)
    assert task.units(run, "train", task.pairs(run, "train"))[0] == (
        f"<2en> {LARGEST[0]}",
        "one two <sep> two <sep> three",
    )


# --- translation --------------------------------------------------------------------------------


@dataclass
class CopyConfig(BeamConfig):
    """Writes the source."""


class Copy(SearchStrategy):
    """Gives each source back as its translation; with `nu`, the separators are lost."""

    def __init__(self, config):
        self.config = config

    def __call__(self, model, source_tokens, source_lengths, requests=None):
        found = []
        for row, length in zip(source_tokens.tolist(), source_lengths.tolist(), strict=True):
            ids = row[: length - 1]
            self.asked.append(ids)
            if self.lost in ids:
                ids = [i for i in ids if i != self.separator]
            if getattr(self, "strays", False):
                ids = [*ids, self.separator, ids[0]]
            scores = [-float(n) for n in range(1, len(ids) + 2)]
            best = Hypothesis(ids, -1.0, scores)
            # Of the others one has a sentence more.
            others = [
                Hypothesis([*ids, self.separator, ids[0]], -2.0, scores),
                Hypothesis(ids[:-1] + ids[:1], -3.0, scores),
            ]
            found.append([best, *others][: self.config.nbest])
        return found


@pytest.fixture
def copier(folder):
    run, task = prepared(folder, "copied")
    torch.manual_seed(1)
    search = Copy(CopyConfig())
    Copy.separator, Copy.asked = task.target_tokenizer.separator, []
    (Copy.lost,) = task.source_tokenizer.encode(["nu"])[0]
    return Translator(run.architecture.build(task).eval(), task, search, max_length=12)


def asked(translator):
    return sorted(translator.task.source_tokenizer.decode(translator.search.asked))


def test_lines_are_translated_in_windows_and_come_back_as_lines(copier):
    texts = ["ka lo", "lo", "mi", "", *SECOND[1:], "", " ", "ka"]
    assert copier.translate(texts) == [text.strip() for text in texts]
    assert asked(copier) == sorted([LARGEST[0], together(SECOND[1:4]), together(SECOND[4:]), "ka"])
    copier.search.asked.clear()
    copier.max_length = 4
    assert copier.translate(SECOND[1:]) == SECOND[1:]
    assert asked(copier) == sorted([together(["ra", "so"]), together(["ti", "vu"]), "we ka"])
    assert copier.translate([]) == [] and copier.translate(["", ""]) == ["", ""]


def test_what_looks_like_a_tag_is_text_where_there_are_none(copier):
    assert len(copier.translate(["<2en> ka", "<2en> lo"])) == 2
    (ids,) = copier.search.asked
    assert ids.count(UNK) == 2


def test_a_window_of_one_is_the_sentence(copier):
    copier.window = 1
    assert copier.translate(FIRST) == FIRST
    assert asked(copier) == sorted(FIRST)


def test_what_comes_back_in_other_sentences_is_translated_in_halves(copier):
    done = []
    texts = ["ka", "lo", "nu", "mi", "", "lo", "ra"]
    rows = copier.nbest(texts, progress=done.append)
    assert [row[0].text for row in rows] == texts
    whole, halves = together(texts[:4]), [together(texts[:2]), together(texts[2:4])]
    assert asked(copier) == sorted([whole, *halves, together(["lo", "ra"]), "nu", "mi"])
    told = ["translated without its neighbours"]
    assert [row[0].notes for row in rows] == [[], [], told, told, [], [], []]
    assert done == sorted(done) and done[-1] == 7


def test_fields_of_a_line_are_those_of_its_part_of_the_window(copier):
    row, second = copier.nbest(["ka lo", "mi"], attention=True, beam=3, nbest=3)
    first = row[0]
    assert (first.tokens, first.token_scores) == (["▁ka", "▁lo"], [-1.0, -2.0, -3.0])
    assert (second[0].tokens, second[0].token_scores) == (["▁mi"], [-4.0, -5.0])
    assert first.source_tokens == ["▁ka", "▁lo"] and second[0].source_tokens == ["▁mi"]
    assert first.attention.shape == (2, 2) and second[0].attention.shape == (1, 1)
    assert second[0].alignment == [(0, 0)] and second[0].word_alignment == [(0, 0)]
    # The whole of it, in one piece.
    whole = copier.nbest([together(["ka lo", "mi"])], attention=True)[0][0]
    assert whole.text == together(["ka lo", "mi"])
    assert first.attention == pytest.approx(whole.attention[:2, :2], abs=1e-6)
    assert second[0].attention == pytest.approx(whole.attention[3:4, 3:4], abs=1e-6)
    # Of three hypotheses one had three sentences.
    assert [t.text for t in row] == ["ka lo", "ka lo"] and [t.text for t in second] == ["mi", "ka"]
    assert [t.score for t in second] == [-1.0, -3.0]


def test_only_the_last_line_of_a_window_is_cut_off_with_it_and_none_is_lost(copier):
    text = together(["ka lo", "mi"])
    ((whole,),) = copier.nbest([text])
    rows = _cut(copier, [replace(whole, finished=False)], text, 2)
    assert [row[0].finished for row in rows] == [True, False]
    (ids,) = whole.parts
    assert (
        _cut(copier, [replace(whole, parts=[ids[:3]])], text, 2) == []
    )  # the separator, and nothing after it


def test_lines_with_wishes_and_with_separators_stand_by_themselves(copier):
    texts = ["ka", "lo", f"mi {SEPARATOR} ra", "so", "ti"]
    wishes = [None, Wishes(forbidden=["we"]), None, None, None]
    assert [row[0].text for row in copier.nbest(texts, wishes=wishes)] == texts
    assert asked(copier) == sorted(["ka", "lo", texts[2], together(["so", "ti"])])


def test_what_a_line_of_a_window_lacks_is_told_of_that_line(copier, tmp_path):
    """All lines of the window were said to lack it."""
    (tmp_path / "terms").write_text("lo\tten\nmi\tmi\n")
    rows = copier.nbest(["ka", "lo", "mi"], terminology=str(tmp_path / "terms"))
    assert asked(copier) == [together(["ka", "lo", "mi"])]
    assert [row[0].unmet for row in rows] == [[], ["required: ten"], []]


def test_lines_share_a_window_where_they_share_a_language_tag(folder):
    tagged = [f"data.{split}={{source: {split}.xx, target: {split}.en, target_lang: {lang}}}"
              for split, lang in (("train", "en"), ("valid", "en"))]  # fmt: skip
    both = (
        tagged[0].replace("data.train=", "data.train=[")
        + ", {source: valid.xx, target: valid.en, target_lang: de}]"
    )
    run, task = prepared(
        folder, "tags", TASK.replace("}", ", language_tags: true}"), both, tagged[1]
    )
    Copy.separator, Copy.asked, Copy.lost = task.target_tokenizer.separator, [], -1
    translator = Translator(run.architecture.build(task), task, Copy(CopyConfig()))
    translator.target_lang = "de"
    assert translator.translate(["ka", "<2de> lo", "<2en> mi", "nu"]) == ["ka", "lo", "mi", "nu"]
    assert sorted(len(ids) for ids in Copy.asked) == [2, 2, 4]


def test_the_line_that_is_too_long_is_told(copier):
    copier.on_long = "error"
    with pytest.raises(UserError, match=r"^sentence 4 has 13 tokens, data.max_length is 12"):
        copier.translate(["ka", "lo", "", "ka " * 13, "mi"])


def test_validation_takes_neighbours(folder, copier):
    run = configured(folder, "copied", "validation.max_sentences=4")
    run.validation.search = replace(run.validation.search)
    validation = Validation(run, copier.task)
    assert len(validation.encoded.source.lengths) == 3
    validation.run.validation.search.build = lambda: copier.search
    _, samples = validation(copier.model, run.criterion.build(copier.task))
    assert [source for source, _, _ in samples] == [*FIRST, SECOND[0]]


def test_groups_of_lines_end_with_a_document_or_the_input():
    class Slow:
        def __init__(self, lines):
            self.lines = lines

        def __iter__(self):
            import time

            for line in self.lines:
                time.sleep(0.1)
                yield line

    lines = [b"a\n", b"b\n", b"\n", b"c\n", b"d\n"]
    assert list(groups(Slow(lines), 100, documents=True)) == [lines[:3], lines[3:]]
    assert list(groups(Slow(lines), 2, documents=True)) == [lines[:2], lines[2:3], lines[3:]]
    assert len(list(groups(Slow(lines), 100))) > 2


def test_a_file_is_a_document_and_so_is_what_an_empty_line_of_it_ends(tmp_path):
    testing.write_corpus(tmp_path)
    rows = [
        json.dumps({"translation": {"xx": xx, "en": en}})
        for xx, en in zip("abcd", "efgh", strict=True)
    ]
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "1.jsonl").write_text(f"{rows[0]}\n\n{rows[1]}\n")
    (tmp_path / "many" / "2.jsonl").write_text(f"{rows[2]}\n{rows[3]}\n")
    many = "{name: jsonl, path: many}"
    run, task = prepared(tmp_path, "files", WORDS[1], f"data.train={many}", f"data.test={many}")
    assert sources_of(task) == ["a", "b", "c", "d", together(["c", "d"])]
    ((_, pairs),) = task.pairs(run, "test")
    assert [source for source, _ in pairs] == ["a", "", "b", "", "c", "d"]


def test_the_pair_that_is_too_long_is_told_by_its_line(folder):
    with pytest.raises(UserError, match=r"pair 10 has 2 tokens, data.max_length is 1"):
        short = "data.train={source: late.xx, target: late.xx}"
        (folder / "late.xx").write_text("ka\n" * 4 + "\n" + "lo\n" * 4 + "ka lo\n")
        prepared(folder, "late", WORDS[1], short, "data.max_length=1", "data.on_long=error")


def test_a_tag_takes_a_place_of_sources_alone_where_long_ones_are_an_error(folder):
    """A target of max_length tokens was refused, and the message told a max_length that nobody had set."""
    tagged = "task={name: documents, source_lang: xx, target_lang: en, language_tags: true}"
    short = "data.train={source: just.xx, target: just.en}"
    strict = (WORDS[1], short, tagged, "data.on_long=error", "data.max_length=3")
    (folder / "just.xx").write_text("ka lo\n")
    (folder / "just.en").write_text("one two six\n")
    _, task = prepared(folder, "just", *strict)
    assert len(task.stores[0]) == 1
    (folder / "just.xx").write_text("ka lo ra\n")
    with pytest.raises(UserError, match=r"has 4 tokens, data.max_length is 3;.* with: ka lo ra$"):
        prepared(folder, "just", *strict)


class Sources(Metric):
    """What metrics that read sources are given."""

    label, higher_is_better, takes_sources = "sources", True, True
    seen: list = []

    def score(self, hypotheses, references, sources=None):
        self.seen.append((list(sources), [list(side) for side in references]))
        return Score("sources", 1.0, "none", "sources")


def test_metrics_see_sentences_without_tags_and_without_ends_of_documents(folder, monkeypatch):
    tagged = TASK.replace("}", ", language_tags: true}")
    run, task = prepared(folder, "scored", tagged)
    translator = Translator(run.architecture.build(task), task, BeamSearch(BeamConfig(max_extra=1)))
    monkeypatch.setattr(Sources, "seen", [])
    monkeypatch.setattr("mtplug.training.run.metrics_of", lambda *_: [Sources()])
    notes = []
    ((_, _, hypotheses),) = evaluate(run, translator, "test", notes.append)
    assert Sources.seen[0][0] == FIRST + SECOND and len(Sources.seen[0][1][0]) == 9
    assert len(hypotheses) == 10 and hypotheses[3] == ""
    assert [note.partition(" translations")[0] for note in notes] == ["test.xx-en: 9 of 9"]
    monkeypatch.setattr("mtplug.training.validation.metrics_of", lambda *_: [Sources()])
    run = configured(folder, "scored", tagged, "validation.max_sentences=4")
    run = replace(run, validation=replace(run.validation, best_metric="loss"))
    _, samples = Validation(run, task)(translator.model, run.criterion.build(task))
    assert Sources.seen[1][0] == [*FIRST, SECOND[0]] and len(samples) == 4


def test_a_shortlist_has_the_separator_where_the_source_has_it(folder):
    run, task = prepared(folder, "listed", *WORDS)
    lexicon = Lexicon.of_run(run, folder / "listed", task)
    separator = task.target_tokenizer.separator
    for text, there in ((LARGEST[0], True), (FIRST[0], False)):
        ids = task.source_tokenizer.encode([text])
        assert (separator in lexicon.candidates(torch.tensor(ids), 3, None)) is there


def test_one_sentence_stays_one(copier):
    """A model may write a separator where there is nothing to separate."""
    copier.search.strays = True
    copier.window = 1
    assert copier.translate(["ka lo", f"ka {SEPARATOR} lo"]) == [
        "ka lo ka",
        f"ka {SEPARATOR} lo {SEPARATOR} ka",
    ]
    copier.window = 4
    assert copier.translate(["ka lo", "", "mi"]) == ["ka lo ka", "", "mi mi"]
    copier.task.target_lang = "ja"  # which has no blanks between sentences
    assert copier.translate(["ka lo"]) == ["ka loka"]


def test_lines_of_adapters_share_a_window_where_they_are_neighbours(copier):
    translator = SwitchingTranslator(copier, {"x": copier.model, "y": copier.model})
    texts, names = ["ka", "", "lo", "mi", "ra", "so"], ["x", "", "x", "x", "y", "x"]
    assert translator.translate(texts, adapters=names) == texts
    assert asked(copier) == sorted(["ka", together(["lo", "mi"]), "ra", "so"])


def test_runs_of_sentences_are_not_mixed_in(folder, copier):
    alone = load_config(
        folder / "run.yaml", [f"data.root={folder}", "run_dir=" + str(folder / "alone2")]
    )[0]
    task = alone.task.build()
    (folder / "alone2").mkdir()
    task.prepare(alone, folder / "alone2", lambda text: None)
    with pytest.raises(UserError, match=f"x: a run of documents has {SEPARATOR} in its vocabulary"):
        same_vocabulary(copier.task.target_tokenizer, task.target_tokenizer, "x")


# --- what it is for -----------------------------------------------------------------------------


LEARNING = (
    "criterion.smoothing=0", "training.max_updates=400", "lr_scheduler.name=cosine", "validation.every_updates=200",
    "architecture.encoder_layers=1", "architecture.decoder_layers=1", "architecture.dropout=0",
)  # fmt: skip


def test_a_word_that_depends_on_an_earlier_sentence_is_learnt(tmp_path):
    """`mi` is one or two, as the document's first sentence says."""
    rng = random.Random(3)
    for split, count in (("train", 300), ("valid", 12), ("test", 12)):
        sides = {"xx": [], "en": []}
        for _ in range(count):
            said = rng.choice(["ka", "lo"])
            rest = rng.choices(list(tiny.LEXICON)[3:], k=2)
            sides["xx"] += [said, *(f"mi {word}" for word in rest), ""]
            first = tiny.LEXICON[said]
            sides["en"] += [first, *(f"{first} {tiny.LEXICON[word]}" for word in rest), ""]
        for language, lines in sides.items():
            (tmp_path / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.yaml").write_text(tiny.CONFIG.replace("vocab_size: 23", "vocab_size: 21"))
    run = tiny.train(tmp_path, "run", TASK, *LEARNING)
    from mtplug.cli.evaluate import main

    right = {}
    for window in (4, 1):
        out = tmp_path / str(window)
        assert main([str(run), f"task.window={window}", "--output", str(out)]) == 0
        made = (out / "test.txt").read_text().splitlines()
        right[window] = sum(map(str.__eq__, made, sides["en"])) / len(sides["en"])
    assert right[4] > 0.97 and right[1] < 0.85
    # On the command line as in an evaluation, and an empty line begins anew.
    given = "ka\nmi so\n\nlo\nmi so\nmi nu\n"
    made = tiny.called("translate", run, input=given)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "one\none seven\n\ntwo\ntwo seven\ntwo four\n"
