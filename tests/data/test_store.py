"""The binary store against its input."""

import itertools
import json
import os
import signal
import subprocess
import sys

import pytest

from mtplug.data.build import build_store
from mtplug.data.corpora.text import Text, TextConfig, Tsv, TsvConfig
from mtplug.data.encoding import Encoding, encode
from mtplug.data.store import Store
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.errors import MtplugError, UserError
from mtplug.evaluation.files import lines_of
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    return SentencePiece.train(SentencePieceConfig(vocab_size=40), texts, "joint")


def corpus(tmp_path, lines):
    for side, name in ((0, "a"), (1, "b")):
        (tmp_path / name).write_text("".join(pair[side] + "\n" for pair in lines))
    return Text(TextConfig(source="a", target="b", root=str(tmp_path)), ("xx", "en"))


def build(tmp_path, lines, tokenizer, fingerprint=None, workers=1, report=print, **policy):
    encoding = Encoding((tokenizer, tokenizer), **{"max_length": 100, "on_long": "skip", **policy})
    made = corpus(tmp_path, lines)
    return build_store(
        tmp_path / "store", made, encoding, fingerprint or {}, workers=workers, report=report
    )


def texts(store, tokenizer):
    return [
        tuple(tokenizer.decode([list(map(int, ids)) for ids in store[i]]))
        for i in range(len(store))
    ]


def test_store_holds_what_the_corpus_says(tmp_path, tokenizer):
    lines = tiny.pairs(50, 3)
    assert texts(build(tmp_path, lines, tokenizer), tokenizer) == lines


@pytest.fixture
def small(monkeypatch):
    """Chunks of 64 lines, blocks of 10 pairs, shards of 256 lines."""
    monkeypatch.setattr("mtplug.data.encoding.CHUNK", 64)
    monkeypatch.setattr("mtplug.data.build.BLOCK", 10)
    monkeypatch.setattr("mtplug.data.build.SHARD", 256)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_several_processes_write_what_one_writes(tmp_path, tokenizer, small):
    lines = tiny.pairs(1000, 4)
    lines[30], lines[700] = ("", ""), ("lo " * 150, "two")
    found = {}
    for workers in (1, 2, 3):
        (folder := tmp_path / str(workers)).mkdir()
        store = build(folder, lines, tokenizer, workers=workers, keep_text=workers == 3)
        found[workers] = contents(store.folder)
        kept = [pair for pair in lines if pair not in (lines[30], lines[700])]
        assert texts(store, tokenizer) == kept
        assert len(store.meta["shards"]) == 4
    assert found[1] == found[2] and set(found[1]) == set(found[3])
    read = [store.block(n) for n in range(store.blocks)]
    assert [t for pairs in read for t in pairs.texts[1].texts()] == [target for _, target in kept]


@pytest.mark.parametrize("harm", ["cut", "gone", "longer", "folder"])
def test_damaged_shard_is_named_and_written_anew(tmp_path, tokenizer, small, harm):
    lines = tiny.pairs(1000, 4)
    lines[300] = ("", "")
    store = build(tmp_path, lines, tokenizer)
    before = contents(store.folder)
    shard = store.folder / "shard-00001.bin"
    if harm in ("cut", "longer"):
        shard.write_bytes(before[shard.name][:-1] if harm == "cut" else before[shard.name] + b"x")
    else:
        shard.unlink()
    if harm == "folder":
        shard.mkdir()
    with pytest.raises(UserError, match=r"shard-00001\.bin (has|cannot be read).*is written anew"):
        Store(store.folder)
    told = []
    again = build(tmp_path, lines, tokenizer, report=told.append)
    assert len(told) == 1 and "shard-00001.bin" in told[0]
    assert contents(again.folder) == before


def test_shard_that_cannot_be_made_again_is_refused(tmp_path, tokenizer, small):
    lines = tiny.pairs(600, 4)
    store = build(tmp_path, lines, tokenizer)
    (store.folder / "shard-00001.bin").unlink()
    lines[400] = ("lo", "two two")
    with pytest.raises(UserError, match=r"shard-00001\.bin is damaged, and the corpus no longer"):
        build(tmp_path, lines, tokenizer)


def test_changed_bytes_are_told_when_they_are_read(tmp_path, tokenizer, small):
    store = build(tmp_path, tiny.pairs(600, 4), tokenizer)
    shard = store.folder / "shard-00001.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00001\.bin is damaged \(block \d+\)"):
        texts(Store(store.folder), tokenizer)


def test_damaged_index_is_told_and_the_store_written_anew(tmp_path, tokenizer, small):
    lines = tiny.pairs(600, 4)
    store = build(tmp_path, lines, tokenizer)
    before = contents(store.folder)
    whole = before["index.bin"]
    for harmed in (whole[:-32], bytes([whole[0] ^ 1]) + whole[1:]):
        (store.folder / "index.bin").write_bytes(harmed)
        with pytest.raises(UserError, match=r"index\.bin is damaged"):
            Store(store.folder)
    assert contents(build(tmp_path, lines, tokenizer).folder) == before


class Dies(SentencePiece):
    def encode(self, texts):
        if "die" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts)


def test_process_that_dies_is_told_and_leaves_nothing(tmp_path, tokenizer, small):
    lines = tiny.pairs(600, 4)
    lines[500] = ("die", "die")
    with pytest.raises(MtplugError, match="processes that tokenise has died"):
        build(tmp_path, lines, Dies(tokenizer.model), workers=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_lines_are_not_read_far_ahead_of_what_is_written(tokenizer, small):
    read, ahead = 0, []

    def lines():
        nonlocal read
        for pair in tiny.pairs(2000, 4):
            read += 1
            yield pair

    done = 0
    for count, *_ in encode(lines(), Encoding((tokenizer, tokenizer), 100, "skip"), workers=2):
        done += count
        ahead.append(read - done)
    assert done == 2000 and max(ahead) <= 64 * 5


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("skip", [("ka", "one")]),
        ("truncate", [("ka", "one"), ("lo lo lo", "two two two")]),
        (
            "split",
            [
                ("ka", "one"),
                ("lo lo", "two two"),
                ("lo lo", "two two"),
                ("lo lo lo", "two two two"),
            ],
        ),
    ],
)
def test_policies_for_long_lines_are_followed_and_counted(tmp_path, policy, kept, monkeypatch):
    words = [w for pair in tiny.pairs(300, 0) for text in pair for w in text.split()]
    by_word = SentencePiece.train(
        SentencePieceConfig(vocab_size=23, model_type="word"), [" ".join(words)], "joint"
    )
    limit = {"skip": 3, "truncate": 3, "split": 4}[policy]
    lines = [("ka", "one"), ("lo " * 7, "two " * 7)]
    store = build(tmp_path, lines, by_word, max_length=limit, on_long=policy)
    assert texts(store, by_word) == kept
    assert store.meta["counts"]["too_long"] == 1
    monkeypatch.setattr("mtplug.data.encoding.CHUNK", 1)
    with pytest.raises(UserError, match=r"pair 2 has 7 tokens.*data\.on_long.*: lo lo lo"):
        build(tmp_path, lines, by_word, max_length=limit, on_long="error")


def test_store_is_rebuilt_when_what_it_depends_on_changes(tmp_path, tokenizer):
    lines = tiny.pairs(20, 5)
    build(tmp_path, lines, tokenizer, {"files": ["x"]})
    marker = tmp_path / "store" / "marker"
    marker.touch()
    opened = build(tmp_path, lines, tokenizer, {"files": ["x"]})
    assert marker.exists() and not opened.fresh
    written = build(tmp_path, lines, tokenizer, {"files": ["y"]})
    assert not marker.exists() and written.fresh


def test_failure_leaves_nothing_behind(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no sentence pair is left"):
        build(tmp_path, [("", "one"), ("two", "")], tokenizer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_ids_are_as_small_as_the_vocabulary_allows(tmp_path, tokenizer):
    store = build(tmp_path, tiny.pairs(5, 5), tokenizer)
    assert json.loads((store.folder / "store.json").read_text())["dtype"] == "uint16"


def test_sides_of_different_length_are_told_with_both_counts(tmp_path):
    (tmp_path / "a").write_text("x\ny\nz\nlast")
    (tmp_path / "b").write_text("x\ny\n")
    for (left, first), (right, second) in itertools.permutations([("a", 4), ("b", 2)]):
        config = TextConfig(source=left, target=right, root=str(tmp_path))
        with pytest.raises(
            UserError, match=f"{left} has {first} lines, .*{right} has {second}: both"
        ):
            list(Text(config, ("xx", "en")))


def test_invalid_utf8_names_the_line_or_is_counted(tmp_path):
    (tmp_path / "a").write_bytes(b"x\n\xff\xfe\nz\n")
    (tmp_path / "b").write_text("1\n2\n3\n")
    config = TextConfig(source="a", target="b", root=str(tmp_path))
    with pytest.raises(UserError, match=r"a:2: not valid UTF-8"):
        list(Text(config, ("xx", "en")))
    config.on_error = "skip"
    lenient = Text(config, ("xx", "en"))
    assert list(lenient) == [("x", "1"), ("z", "3")]
    assert lenient.bad_lines == 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_that_begins_as_utf_16_is_called_so(tmp_path, encoding):
    """As PowerShell writes files; the bytes of a line feed were taken as ends of lines, and their number was told as wrong."""
    (tmp_path / "a").write_bytes("\ufeffx\ny\n".encode(encoding))
    (tmp_path / "b").write_text("1\n2\n")
    config = TextConfig(source="a", target="b", root=str(tmp_path), on_error="skip")
    with pytest.raises(UserError, match=r"a is UTF-16; convert"):
        Text.check_files(config)
    with pytest.raises(UserError, match=r"a is UTF-16; convert"):
        lines_of(tmp_path / "a")


def test_tab_separated_pairs(tmp_path):
    (tmp_path / "t").write_text("a\tb\nc\td\n\n")
    config = TsvConfig(path="t", root=str(tmp_path), source_column=1, target_column=0)
    with pytest.raises(UserError, match=r"t:3: no column 1"):
        list(Tsv(config, ("xx", "en")))
    config.on_error = "skip"
    assert list(Tsv(config, ("xx", "en"))) == [("b", "a"), ("d", "c")]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (5000, r"5000 is more than the joint text allows; at most \d+"),
        (5, "5 is less than the joint text has characters: at least 23, all symbols counted"),
    ],
)
def test_vocabulary_that_the_text_does_not_allow(size, message):
    lines = [text for pair in tiny.pairs(50, 0) for text in pair]
    with pytest.raises(UserError, match=message):
        SentencePiece.train(SentencePieceConfig(vocab_size=size), lines, "joint")


def test_tokenizer_keeps_chinese_punctuation_and_special_ids(tmp_path):
    lines = ["今天下午，我会再见到你。", "桌上有个苹果！"] * 5
    made = SentencePiece.train(SentencePieceConfig(vocab_size=32), lines, "target")
    made.save(tmp_path, "target")
    loaded = SentencePiece.load(tmp_path, "target")
    assert loaded.decode(loaded.encode(lines)) == lines
    assert min(min(row) for row in loaded.encode(lines)) > 2
    assert loaded.tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]


ENDLESS = """
import itertools, sys
from pathlib import Path
from mtplug.data.encoding import Encoding, encode
from mtplug.data.tokenizers import SentencePiece
tokenizer = SentencePiece.load(Path(sys.argv[1]), "joint")
lines = itertools.repeat(("ka lo", "one two"))
for _ in encode(lines, Encoding((tokenizer, tokenizer), 100, "skip"), workers=2):
    print("begun", flush=True)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path, tokenizer):
    tokenizer.save(tmp_path, "joint")
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.kill()
    process.stdout.read()  # until all who can write there have ended
    process.wait()


@pytest.mark.parametrize(("changed", "said"), [
    ({"dtype": "O"}, r"store\.json is damaged"), ({"dtype": "nope"}, "nope"), ({"dtype": "int16"}, r"store\.json is damaged"),
    ({"counts": {"pairs": -1}}, r"store\.json is damaged"), ({"counts": {"pairs": 10**9}}, r"store\.json is damaged"),
    ({"counts": 3}, "not subscriptable"), ({"blocks": ...}, "blocks"),
])  # fmt: skip
def test_a_store_changed_by_hand_is_told(tmp_path, tokenizer, changed, said):
    lines = tiny.pairs(20, 4)
    folder = build(tmp_path, lines, tokenizer).folder
    meta = json.loads((folder / "store.json").read_text()) | changed
    (folder / "store.json").write_text(json.dumps({k: v for k, v in meta.items() if v is not ...}))
    with pytest.raises(UserError, match=f"{said}.*; run mtplug-preprocess, or remove"):
        build(tmp_path, lines, tokenizer)


def test_a_store_that_does_not_say_what_it_is_of_is_written_anew(tmp_path, tokenizer):
    lines = tiny.pairs(20, 4)
    folder = build(tmp_path, lines, tokenizer).folder
    before = contents(folder)
    meta = json.loads(before["store.json"])
    del meta["fingerprint"]
    (folder / "store.json").write_text(json.dumps(meta))
    assert contents(build(tmp_path, lines, tokenizer).folder) == before


@pytest.mark.parametrize("changed", [{"dtype": "uint32"}, {"text": True}])
def test_a_store_that_says_it_holds_something_else_is_told(tmp_path, tokenizer, changed):
    folder = build(tmp_path, tiny.pairs(20, 4), tokenizer).folder
    meta = json.loads((folder / "store.json").read_text())
    assert (meta["dtype"], meta["text"]) == ("uint16", False)
    (folder / "store.json").write_text(json.dumps(meta | changed))
    with pytest.raises(UserError, match=r"store\.json: .*; run mtplug-preprocess, or remove"):
        texts(Store(folder), tokenizer)
