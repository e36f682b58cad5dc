"""`data.train.prefix`: sources of a corpus begin with a tag."""

import json
from pathlib import Path

import pytest

import mtplug
from mtplug import testing
from mtplug.config import load_config
from mtplug.config.build import to_plain
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score
from mtplug.tasks import translation
from mtplug.training.run import prepare
from tests import tiny

CODES = Path(__file__).parents[1] / "golden" / "fairseq" / "codes" / "codes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    tiny.write_corpus(folder)
    return folder


def corpora(prefix):
    own = "{source: train.xx, target: train.en}"
    made = f"{{source: valid.xx, target: valid.en, prefix: {prefix}}}" if prefix else own
    return f"data.train=[{own}, {made}]"


def test_sources_begin_with_it_and_it_is_one_piece(folder, capsys):
    """The rows are those of a corpus that was tagged by hand."""
    plain = (folder / "valid.xx").read_text().splitlines()
    (folder / "tagged.xx").write_text("".join(f"<bt> <web> {line}\n" for line in plain))
    settings = (
        "data.test=null",
        "training.max_updates=2",
        "tokenizer.model_type=bpe",
        "tokenizer.vocab_size=60",
    )
    run = tiny.train(folder, "run", corpora("<bt> <web>"), *settings)
    by_hand = corpora("").replace("train.xx, target: train.en}]", "tagged.xx, target: valid.en}]")
    other = tiny.train(folder, "hand", by_hand, "tokenizer.user_symbols=[<bt>, <web>]", *settings)
    for name in ("tokenizer/joint.model", "checkpoints/last/model.safetensors"):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    tokenizer = mtplug.load(run, checkpoint="last").task.source_tokenizer
    assert tokenizer.tokens(tokenizer.encode(["<bt> <web> ka"])[0])[:4:2] == ["▁", "▁"]
    assert {"<bt>", "<web>"} <= set(tokenizer.tokens(tokenizer.encode(["<bt> <web> ka"])[0]))


def test_codes_do_not_cut_it(folder):
    """It was `<@@ new@@ s@@ >`."""
    settings = [f"data.root={folder}", f"run_dir={folder / 'words'}", corpora("<news> <web>")]
    run, _ = load_config(
        folder / "run.yaml", [*settings, f"tokenizer={{name: words, codes: {CODES}}}"]
    )
    task = prepare(run, print)
    source = task.stores[1][0][0]
    assert task.source_tokenizer.tokens(source[:2].tolist()) == ["<news>", "<web>"]
    assert task.source_tokenizer.cut("<news> <web>") == ["<news>", "<web>"]


@pytest.mark.parametrize("codes", ["", f", codes: {CODES}"])
def test_what_an_earlier_version_made_without_it_stays(folder, codes, capsys, monkeypatch):
    """Tokenizer and store of a run that was begun when `words` had no `user_symbols`."""

    def told(value):
        plain = to_plain(value)
        if isinstance(plain, dict):
            plain.pop("user_symbols", None)
        return plain

    name = f"earlier{bool(codes)}"
    settings = (corpora("<news>"), f"tokenizer={{name: words{codes}}}", "data.test=null")
    with monkeypatch.context() as earlier:
        earlier.setattr(translation, "to_plain", told)
        earlier.setattr(translation.Translation, "tokenizer", lambda self, run: run.tokenizer)
        run = tiny.train(folder, name, *settings, "training.max_updates=2")
    files = {file: file.read_bytes() for file in (run / "tokenizer").iterdir()}
    assert b"user_symbols" not in files[run / "tokenizer" / "tokenizer.json"]
    capsys.readouterr()
    tiny.train(folder, name, *settings, "training.max_updates=3")
    assert files == {file: file.read_bytes() for file in (run / "tokenizer").iterdir()}
    said = capsys.readouterr().err
    assert said.count("data: opened") == 2 and "going on from update 2" in said


def test_a_changed_prefix_makes_the_store_anew(folder):
    said = []
    words = "tokenizer={name: words, vocab_size: 0}"
    config = [f"data.root={folder}", f"run_dir={folder / 'store'}", words]
    for prefix, verb in (("<a>", "wrote"), ("<a>", "opened"), ("<b>", "rebuilt")):
        run, _ = load_config(folder / "run.yaml", [*config, corpora(prefix)])
        prepare(run, said.append)
        assert f"data: {verb} {folder / 'store' / 'data' / 'train-1'}" in said[-1]


def test_one_that_the_base_cannot_read_is_told(folder, capsys):
    """Only a share of unknown tokens was, for which other characters were proposed."""
    lines = ("data.test=null", "training.max_updates=1")
    base = tiny.train(folder, "unprefixed", *lines)
    tuned = ("data.test=null", "training.max_updates=1", f"training.finetune_from={base}")
    for name, prefix, told in (("tuned", "<bt>", 1), ("read", "ka", 0)):
        capsys.readouterr()
        tiny.train(folder, name, corpora(prefix), *tuned)
        assert capsys.readouterr().err.count(f"data: {prefix} in front of sources is not") == told


def test_filters_do_not_look_at_it(folder):
    """It counted as a word, so that short back-translations passed as longer ones, and none was a copy."""
    (folder / "made.xx").write_text("one\none two\nfive\nfive\nfive\n")
    (folder / "made.en").write_text("one two three\none two three\nfive\nfünf\nfünf\n")
    made = "data.train=[{source: made.xx, target: made.en, prefix: <bt>}]"
    wanted = "data.filters={max_ratio: 2, copies: true, duplicates: true}"
    words = "tokenizer={name: words, vocab_size: 0}"
    run, _ = load_config(folder / "run.yaml", [
        f"data.root={folder}", f"run_dir={folder / 'filtered'}", words, made, wanted,
    ])  # fmt: skip
    task = prepare(run, print)
    assert list(task.views[0]) == [("<bt> one two", "one two three"), ("<bt> five", "fünf")]
    told = json.loads((folder / "filtered" / "data" / "filters.json").read_text())
    dropped = told["train-0"]["dropped"]
    assert [dropped[name]["count"] for name in ("ratio", "copies", "duplicates")] == [1, 1, 1]
    assert dropped["ratio"]["examples"][0]["source"] == "one"


class Sources(Metric):
    """What metrics that read sources are given."""

    label, higher_is_better, takes_sources = "sources", True, True
    seen: list = []

    def score(self, hypotheses, references, sources=None):
        self.seen.append(sources)
        return Score("sources", 1.0, "none", "sources")


def test_metrics_that_read_sources_do_not_see_it(folder, monkeypatch):
    """COMET read `<legal>`, or `translate English to German:` of a T5, as words of the sentence."""
    monkeypatch.setattr(Sources, "seen", [])
    for place in ("run", "validation"):
        monkeypatch.setattr(f"mtplug.training.{place}.metrics_of", lambda *_: [Sources()])
    sets = [
        f"data.{split}={{source: {split}.xx, target: {split}.en, prefix: into <b>}}"
        for split in ("train", "valid", "test")
    ]
    once = ("training.max_updates=1", "validation.best_metric=loss", "tokenizer.vocab_size=26")
    tiny.train(folder, "scored", *sets, *once, "task.language_tags=true", "search={max_extra: 1}")
    texts = [(folder / f"{split}.xx").read_text().splitlines() for split in ("valid", "test")]
    assert Sources.seen == texts


def test_where_there_is_no_source_it_is_refused(folder):
    run, _ = load_config(folder / "run.yaml", [
        f"data.root={folder}", f"run_dir={folder / 'no'}", corpora("<bt>"),
        "task={name: masked_lm}", "architecture.name=transformer_encoder", "validation.best_metric=loss",
    ])  # fmt: skip
    with pytest.raises(
        UserError, match="put in front of source texts, which this task does not have"
    ):
        prepare(run, print)


def test_pieces_of_a_split_text_begin_with_it_wherever_they_are_cut(folder):
    """Only training had it; of two prefixes that begin alike the longer one is meant."""
    from mtplug.training.validation import encoded_references
    from mtplug.translator import load, load_run

    run = testing.train(
        folder, "data.train=[{source: train.xx, target: train.en, prefix: <p>}, "
        "{source: train.xx, target: train.en, prefix: <p> <q>}]",
        "tokenizer.vocab_size=60", "tokenizer.model_type=bpe", "data.max_length=12", "data.on_long=split", updates=2, name="split",
    )  # fmt: skip
    translator, long = load(run, device="cpu"), " ".join(["ka lo mi nu pe"] * 4)
    tokenizer = translator.task.source_tokenizer
    for prefix in ("<p>", "<p> <q>"):
        head = tokenizer.encode([prefix])[0]
        pairs, _ = encoded_references(
            translator.task, [(f"{prefix} {long}", "one two " * 9)], load_run(run)
        )
        cut = translator._pieces([f"{prefix} {long}"])[0]
        for pieces in (cut, [row.tolist() for row in pairs.source.rows()]):
            assert len(pieces) > 2 and all(p[: len(head)] == head and len(p) <= 12 for p in pieces)
