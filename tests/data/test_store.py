"""The binary store against its input."""

import json

import pytest

from mtplug.data.corpora.text import Text, TextConfig, Tsv, TsvConfig
from mtplug.data.store import Store, build_store
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    return SentencePiece.train(SentencePieceConfig(vocab_size=40), texts, "joint")


def corpus(tmp_path, lines):
    for side, name in ((0, "a"), (1, "b")):
        (tmp_path / name).write_text("".join(pair[side] + "\n" for pair in lines))
    return Text(TextConfig(source="a", target="b", root=str(tmp_path)), ("xx", "en"))


def build(tmp_path, lines, tokenizer, fingerprint=None, **settings):
    settings = {"max_length": 100, "on_long": "skip", "workers": 1, **settings}
    pair = (tokenizer, tokenizer)
    return build_store(
        tmp_path / "store", corpus(tmp_path, lines), pair, fingerprint or {}, **settings
    )


def texts(store, tokenizer):
    return [
        tuple(tokenizer.decode([list(map(int, ids)) for ids in store[i]]))
        for i in range(len(store))
    ]


def test_store_holds_what_the_corpus_says(tmp_path, tokenizer):
    lines = tiny.pairs(50, 3)
    assert texts(build(tmp_path, lines, tokenizer), tokenizer) == lines


def test_several_processes_write_what_one_writes(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("mtplug.data.store.CHUNK", 64)
    lines = tiny.pairs(1000, 4)
    for name, workers in (("one", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        build(tmp_path / name, lines, tokenizer, workers=workers)
    for file in ("source.bin", "target.bin", "source.idx.npy", "target.idx.npy"):
        one, three = ((tmp_path / n / "store" / file).read_bytes() for n in ("one", "three"))
        assert one == three


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("skip", [("ka", "one")]),
        ("truncate", [("ka", "one"), ("lo lo lo", "two two two")]),
        ("split", [("ka", "one"), ("lo lo lo", "two two two"), ("lo lo lo lo", "two two two two")]),
    ],
)
def test_policies_for_long_lines_are_followed_and_counted(tmp_path, policy, kept):
    words = [w for pair in tiny.pairs(300, 0) for text in pair for w in text.split()]
    by_word = SentencePiece.train(
        SentencePieceConfig(vocab_size=23, model_type="word"), [" ".join(words)], "joint"
    )
    limit = {"skip": 3, "truncate": 3, "split": 4}[policy]
    lines = [("ka", "one"), ("lo " * 7, "two " * 7)]
    store = build(tmp_path, lines, by_word, max_length=limit, on_long=policy)
    assert texts(store, by_word) == kept
    assert store.meta["counts"]["too_long"] == 1
    with pytest.raises(UserError, match=r"pair 2 has 7 tokens.*data\.on_long"):
        build(tmp_path, lines, by_word, max_length=limit, on_long="error")


def test_store_is_rebuilt_when_what_it_depends_on_changes(tmp_path, tokenizer):
    lines = tiny.pairs(20, 5)
    build(tmp_path, lines, tokenizer, {"files": ["x"]})
    marker = tmp_path / "store" / "marker"
    marker.touch()
    build(tmp_path, lines, tokenizer, {"files": ["x"]})
    assert marker.exists()
    build(tmp_path, lines, tokenizer, {"files": ["y"]})
    assert not marker.exists()


def test_failure_leaves_nothing_behind(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no sentence pair is left"):
        build(tmp_path, [("", "one"), ("two", "")], tokenizer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_damaged_store_is_told(tmp_path, tokenizer):
    build(tmp_path, tiny.pairs(20, 5), tokenizer)
    file = tmp_path / "store" / "source.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match="is damaged"):
        Store(tmp_path / "store")


def test_ids_are_as_small_as_the_vocabulary_allows(tmp_path, tokenizer):
    store = build(tmp_path, tiny.pairs(5, 5), tokenizer)
    assert json.loads((store.folder / "store.json").read_text())["dtype"] == "uint16"


def test_sides_of_different_length_name_the_line(tmp_path):
    (tmp_path / "a").write_text("x\ny\nz\n")
    (tmp_path / "b").write_text("x\ny\n")
    short = Text(TextConfig(source="a", target="b", root=str(tmp_path)), ("xx", "en"))
    with pytest.raises(UserError, match=r"b ends after line 2, .*a goes on with line 3"):
        list(short)


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
        (5, "is less than the joint"),
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
