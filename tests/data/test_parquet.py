"""Reader `parquet`: the pairs that pyarrow wrote, as a stream, and errors that name file, column and row."""

import re

import pyarrow
import pytest
from pyarrow import parquet

import mtplug.data.corpora.parquet as reader
from mtplug.data.corpora import records
from mtplug.data.corpora.parquet import Parquet, ParquetConfig
from mtplug.errors import UserError
from tests import tiny

PAIRS = [("A dog\nruns.", "Ein Hund rennt."), ("日本 😀", " Tom & „Jerry“"), ("", "x")]
READ = [("A dog runs.", "Ein Hund rennt."), ("日本 😀", "Tom & „Jerry“"), ("", "x")]


def write(file, pairs=PAIRS, **options):
    """A table of columns that are no texts, a structure as of the hub, and a name with dots."""
    file.parent.mkdir(exist_ok=True)
    table = {
        "id": list(range(len(pairs))),
        "translation": [{"en": s, "de": t, "fr": "rien"} for s, t in pairs],
        "best.en": [s for s, _ in pairs],
        "scores": [[0.5, 0.1] for _ in pairs],
    }
    parquet.write_table(pyarrow.table(table), file, **options)


def corpus(folder, languages=("en", "de"), **settings):
    return Parquet(ParquetConfig(root=str(folder), **settings), languages)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_pairs_are_those_that_were_written(tmp_path, compression):
    write(tmp_path / "train-0.parquet", compression=compression, row_group_size=2)
    write(tmp_path / "train-1.parquet", PAIRS[:1], use_dictionary=False)
    write(tmp_path / "test-0.parquet", [("no", "nein")])
    read = corpus(tmp_path, path="train-*.parquet")
    assert list(read) == [*READ, READ[0]]
    documents = [read.document for _ in read]
    assert documents == [0, 0, 0, 1]
    assert list(corpus(tmp_path, ("de", "en"), path="train-1.parquet")) == [READ[0][::-1]]
    dotted = corpus(tmp_path, path="train-0.parquet", source="best.{lang}", target="translation.fr")
    assert list(dotted)[1] == ("日本 😀", "rien")


def test_a_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "ROWS", 10)
    pairs = [(f"source {n}", f"target {n}") for n in range(105)]
    write(tmp_path / "x.parquet", pairs, row_group_size=50)
    sizes = []
    texts = records.text_of

    def counted(record, name):
        sizes.append(len(record))
        return texts(record, name)

    monkeypatch.setattr(records, "text_of", counted)
    pieces = iter(corpus(tmp_path, path="x.parquet"))
    assert next(pieces) == pairs[0] and len(sizes) == 2
    assert list(pieces) == pairs[1:]
    assert set(sizes) == {1}  # of the structure alone: other columns are not read


def test_what_cannot_be_read_is_told_with_file_and_row(tmp_path):
    write(tmp_path / "x.parquet", [("a", "b"), ("c", None), ("d", "e")])
    file = re.escape(str(tmp_path / "x.parquet"))
    for settings, said in (
        ({}, f"{file}: row 2: no text in field translation.de"),
        ({"source": "id"}, f"{file}: row 1: no text in field id, but 0; fields: "),
        ({"target": "translation.{lang}x"}, f"{file} has no column translation.dex; its columns: id, translation.en"),
        ({"target": "translation"}, f"{file} has no column translation; its columns: id"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            list(corpus(tmp_path, path="x.parquet", **settings))
    skipping = corpus(tmp_path, path="x.parquet", on_error="skip")
    assert list(skipping) == [("a", "b"), ("d", "e")] and skipping.bad_lines == 1
    whole = (tmp_path / "x.parquet").read_bytes()
    for damaged in (b"", b"text", whole[:-20], whole[: len(whole) // 2]):
        (tmp_path / "x.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=f"{file} cannot be read as Parquet: "):
            list(corpus(tmp_path, path="x.parquet", on_error="skip"))
    write(tmp_path / "x.parquet")
    page = parquet.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(1)
    with (tmp_path / "x.parquet").open("r+b") as content:
        content.seek(page.data_page_offset)
        content.write(b"\xff" * 20)
    with pytest.raises(UserError, match=f"{file} cannot be read as Parquet: "):
        list(corpus(tmp_path, path="x.parquet"))
    with pytest.raises(UserError, match=r"no \.parquet file is there"):
        corpus(tmp_path, path="*.pq").files()


def test_a_run_trains_on_it_and_is_validated_with_all_references(tmp_path):
    tiny.write_corpus(tmp_path)
    pairs = tiny.pairs(60, seed=5)
    rows = [{"xx": s, "en": t, "second": t.upper()} for s, t in pairs]
    parquet.write_table(pyarrow.table({"translation": rows}), tmp_path / "pairs.parquet")
    given = "{name: parquet, path: pairs.parquet}"
    valid = "{name: parquet, path: pairs.parquet, references: [translation.second]}"
    settings = (
        "training.max_updates=4",
        "validation.every_updates=2",
        "validation.max_sentences=20",
    )
    run = tiny.train(tmp_path, "run", f"data.train={given}", f"data.valid={valid}", "data.test=null", *settings)  # fmt: skip
    assert '"validation"' in (run / "metrics.jsonl").read_text()
