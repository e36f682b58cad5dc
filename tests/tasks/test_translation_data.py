"""The data of a run: with and without a store, with weights and temperature, with a changed tokenizer."""

import itertools
import json

import pytest

from mtplug.cli.train import main
from mtplug.config import load_config
from mtplug.data.pools import check_weights, epoch_weights
from mtplug.errors import UserError
from mtplug.tasks import translation
from mtplug.training.run import prepare
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    tiny.write_corpus(made)
    return made


def batches(folder, name, *settings, epochs=2):
    data = tiny.trainer(folder, *tiny.arguments(folder, name, *settings)[1:]).data
    found = []
    for _ in range(epochs):
        for planned in data.remaining():
            data.advance(planned)
            made = data.batch(planned)
            found.append((made.source_tokens.tolist(), made.target_tokens.tolist(), data.state()))
    return found


SEVERAL = (
    "data.train=[{source: train.xx, target: train.en}, "
    "{source: valid.xx, target: valid.en, weight: 2}]"
)


def test_without_a_store_the_batches_are_the_same(folder):
    stored = batches(folder, "stored", SEVERAL)
    assert batches(folder, "raw", SEVERAL, "data.store=false") == stored
    assert not (folder / "raw" / "data").exists()


BPE = ("tokenizer.model_type=bpe", "tokenizer.vocab_size=40")


@pytest.mark.parametrize(
    "settings",
    [
        ("data.pool=100", "data.temperature=3"),
        ("data.pool=100", "data.store=false"),
        ("tokenizer.sampling=0.2", *BPE),
        ("tokenizer.sampling=0.2", "data.store=false", "data.pool=100", *BPE),
    ],
)
def test_batches_after_a_resume_are_those_of_the_run_that_never_stopped(folder, settings):
    name = "-".join(settings).replace("=", "-")
    whole = batches(folder, name, SEVERAL, *settings)
    assert whole == batches(folder, name, SEVERAL, *settings)
    arguments = tiny.arguments(folder, name, SEVERAL, *settings)[1:]
    trainer = tiny.trainer(folder, *arguments)
    for stop in range(0, len(whole) - 2, max(len(whole) // 4, 1)):
        trainer.data.restore(whole[stop][2])
        made = [trainer.data.batch(p) for p in itertools.islice(trainer.data.remaining(), 1)]
        assert made[0].source_tokens.tolist() == whole[stop + 1][0]


def test_temperature_follows_its_formula():
    sizes, weights = [1000, 10, 100], [1.0, 1.0, 2.0]
    assert epoch_weights(sizes, weights) == weights
    for temperature in (0.25, 1.5, 5.0, 1e9):
        found = epoch_weights(sizes, weights, temperature)
        seen = [w * n for w, n in zip(found, sizes, strict=True)]
        assert sum(seen) == pytest.approx(1210)
        wanted = [s ** (1 / temperature) for s in (1000, 10, 200)]
        assert [s / sum(seen) for s in seen] == pytest.approx([w / sum(wanted) for w in wanted])
    # The largest corpus alone, where floats have no room for the powers.
    assert epoch_weights(sizes, weights, 1e-3) == pytest.approx([1.21, 0, 0])


@pytest.mark.parametrize("weights", [[1.0, -0.5], [0.0, 0.0], [float("nan"), 1.0]])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(UserError, match="none may be negative"):
        check_weights(weights)


def test_weights_are_checked_before_any_work(folder, capsys):
    corpus = "{source: train.xx, target: train.en, weight: 0}"
    assert main(tiny.arguments(folder, "weightless", f"data.train=[{corpus}]")) == 2
    assert "none may be negative" in capsys.readouterr().err
    assert not (folder / "weightless" / "tokenizer").exists()


def test_changed_tokenizer_under_an_old_run_is_refused(folder, capsys):
    settings = ("training.max_updates=4", "validation.every_updates=4", "data.test=null")
    run = tiny.train(folder, "old", *settings)
    model = run / "tokenizer" / "joint.model"
    before = model.read_bytes()
    tiny.trainer(folder, *tiny.arguments(folder, "other", "tokenizer.vocab_size=21")[1:])
    model.write_bytes((folder / "other" / "tokenizer" / "joint.model").read_bytes())
    assert main(tiny.arguments(folder, "old", *settings)) == 2
    assert "joint.model has changed since" in capsys.readouterr().err
    model.write_bytes(before)
    assert main(tiny.arguments(folder, "old", *settings)) == 0
    model.unlink()
    (run / "tokenizer" / "tokenizer.json").unlink()
    assert main(tiny.arguments(folder, "old", *settings)) == 0
    assert model.read_bytes() == before


@pytest.mark.parametrize("change", ["removed", "copied", "swapped"])
def test_files_of_a_folder_that_changed_are_refused_before_anything_is_written(
    tmp_path, capsys, change
):
    tiny.write_corpus(tmp_path)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    sides = [(tmp_path / f"train.{x}").read_text().splitlines() for x in ("xx", "en")]
    rows = [json.dumps({"translation": {"xx": s, "en": t}}) for s, t in zip(*sides, strict=True)]
    for n in range(3):
        (corpus / f"{n}.jsonl").write_text("\n".join(rows[n::3]) + "\n")
    line = tiny.arguments(tmp_path, "run", "data.train=[{name: jsonl, path: corpus}]", "data.test=null",
                          "training.max_updates=2", "validation.every_updates=2")  # fmt: skip
    assert main(line) == 0
    tokenizer = (tmp_path / "run/tokenizer/joint.model").read_bytes()
    first, second, last = (corpus / f"{n}.jsonl" for n in range(3))
    if change == "removed":
        last.unlink()
    elif change == "copied":
        (corpus / "3.jsonl").write_bytes(last.read_bytes())
    else:
        texts = first.read_text(), second.read_text()
        second.write_text(texts[0])
        first.write_text(texts[1])
    capsys.readouterr()
    assert main([*line, "training.max_updates=4"]) == 2
    error = capsys.readouterr().err
    assert (
        "0.jsonl has changed since" if change == "swapped" else "some were added or removed"
    ) in error
    assert (tmp_path / "run/tokenizer/joint.model").read_bytes() == tokenizer


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["task.target_lang=de"], []),
        (["data.train={name: jsonl, path: several.jsonl, target: translation.de}"], []),
        ([], ["tokenizer.user_symbols=[]"]),
    ],
)
def test_what_another_field_was_read_for_is_made_anew(tmp_path, first, then):
    """A folder that was prepared for German kept its store and tokenizer, and English was learnt from German."""
    tiny.write_corpus(tmp_path)
    rows = [{"xx": s, "en": t, "de": f"das {t}".upper()} for s, t in tiny.pairs(100, 0)]
    text = "".join(json.dumps({"translation": row}) + "\n" for row in rows)
    (tmp_path / "several.jsonl").write_text(text)
    corpus = "data.train={name: jsonl, path: several.jsonl}"
    model = "tokenizer={name: words, vocab_size: 0}"

    def prepared(name, *settings):
        line = tiny.arguments(tmp_path, name, corpus, model, "data.valid=[]", "data.test=[]")
        said = []
        task = prepare(load_config(tmp_path / "run.yaml", [*line[1:], *settings])[0], said.append)
        target = task.stores[0][0][1].tolist()
        return task.target_tokenizer.decode([target]), said[-1]

    prepared("run", *first)
    found, said = prepared("run", *then)
    assert found == [rows[0]["en"]]
    assert ("rebuilt" if first else "opened") in said


def test_a_store_that_does_not_tell_its_languages_stays(tmp_path):
    """As of earlier versions; the tokenizer beside it does not tell its corpora."""
    tiny.write_corpus(tmp_path)
    line = tiny.arguments(tmp_path, "run")
    run = load_config(tmp_path / "run.yaml", line[1:])[0]
    prepare(run, print)
    store, stamp = (tmp_path / "run" / f for f in ("data/train-0/store.json", "tokenizer/tokenizer.json"))  # fmt: skip
    told = json.loads(stamp.read_text())
    del told["corpora"]
    stamp.write_text(json.dumps(told, indent=1))
    meta = json.loads(store.read_text())
    del meta["fingerprint"]["read_for"]
    digest = translation._digest(tmp_path / "run" / "tokenizer")
    meta["fingerprint"]["tokenizer"] = digest
    store.write_text(json.dumps(meta, indent=1))
    said = []
    prepare(run, said.append)
    assert len(said) == 1 and said[0].startswith("data: opened")
    assert "corpora" not in json.loads(stamp.read_text())


@pytest.mark.parametrize("split", ["valid", "test"])
def test_held_out_lines_that_are_all_empty_are_told_before_any_work(tmp_path, split):
    """After the training, a metric failed: list index out of range."""
    tiny.write_corpus(tmp_path)
    for side in ("xx", "en"):
        (tmp_path / f"{split}.{side}").write_text("\n\n")
    run, _ = load_config(tmp_path / "run.yaml", tiny.arguments(tmp_path, "run")[1:])
    match = rf"data\.{split}: .*{split}\.en: no sentence pair: all of 2 are empty"
    with pytest.raises(UserError, match=match):
        prepare(run, print)


def test_filters_are_not_blamed_for_empty_lines(tmp_path):
    tiny.write_corpus(tmp_path)
    for side in ("xx", "en"):
        (tmp_path / f"blank.{side}").write_text("\n\n")
    both = "data.train=[{source: train.xx, target: train.en}, {source: blank.xx, target: blank.en}]"
    given = tiny.arguments(tmp_path, "run", both, "data.filters.copies=true")
    run, _ = load_config(tmp_path / "run.yaml", given[1:])
    with pytest.raises(UserError, match=r"blank\.en: no sentence pair is left of 2 lines"):
        prepare(run, print)
