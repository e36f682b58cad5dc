"""Tokenizer `bytes` against transformers' ByT5."""

import pytest

import mtplug
from mtplug import testing
from mtplug.data.byte_tokenizer import Bytes
from mtplug.search.wishes import Wishes

TEXTS = ["Grüße, 日本 🎉", "a  b\tc", "", " ", "\x00\x7f", "e\u0301"]


def test_it_keeps_the_contract():
    testing.check_tokenizer("bytes")
    testing.check_tokenizer("bytes", "joint=false", "user_symbols=[<x>,<x1>]")


def test_ids_are_those_of_byt5():
    theirs = pytest.importorskip("transformers").ByT5Tokenizer(extra_ids=0)
    made = Bytes()
    assert made.encode(TEXTS) == [theirs(t, add_special_tokens=False)["input_ids"] for t in TEXTS]
    assert made.decode(made.encode(TEXTS)) == TEXTS
    assert len(made) == 259


def test_symbols_are_one_id_wherever_they_stand():
    made = Bytes(["<x>", "<x>y", "<x>"])
    (ids,) = made.encode(["a<x>b<x>yc<x"])
    assert ids == [100, 259, 101, 260, 102, 63, 123] and len(made) == 261
    assert made.decode([ids]) == ["a<x>b<x>yc<x"]
    assert made.tokens(ids) == ["a", "<x>", "b", "<x>y", "c", "<", "x"]


def test_half_of_a_character_is_not_written():
    made = Bytes()
    ids = made.encode(["ä b"])[0]
    assert made.decode([ids[1:], ids[:1], [*ids[:1], 1, 0]]) == [" b", "", ""]
    assert made.tokens(ids) == ["<0xC3>", "<0xA4>", "▁", "b"]


def test_a_run_of_bytes_learns_and_translates_unknown_letters(tmp_path):
    run = testing.train(
        tmp_path, "tokenizer={name: bytes}", "data.test=null", "data.max_length=64", updates=40
    )
    made = mtplug.load(run, "last", device="cpu")
    assert len(made.task.source_tokenizer) == 259
    best = made.nbest(["ka lo Ω", "ti"], beam=3)
    assert best[0][0].tokens and "<unk>" not in best[0][0].tokens
    assert made.score(["ka lo"], ["one Ωmega"])[0].tokens[:4] == ["o", "n", "e", "▁"]


def test_wishes_are_met_in_bytes(tmp_path):
    run = testing.train(
        tmp_path, "tokenizer={name: bytes}", "data.test=null", "data.max_length=64", updates=20
    )
    made = mtplug.load(run, "last", device="cpu")
    wishes = [Wishes(required=["Ωmega"]), Wishes(prefix="größ"), Wishes(forbidden=["e"])]
    (one,), (two,), (three,) = made.nbest(["ka lo"] * 3, wishes=wishes, beam=4)
    assert "Ωmega" in one.text and two.text.startswith("größ") and not three.unmet
