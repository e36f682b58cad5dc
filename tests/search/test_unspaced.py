"""Chinese and Japanese: placeholders and foreign words between characters that no space parts."""

import random
import re

import pytest
import torch

from mtplug.data.tokenizers import EOS, SentencePiece, SentencePieceConfig
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.wishes import Speller, Wishes, WordPattern
from mtplug.testing.material import Words
from tests import tiny
from tests.search.models import RandomModel

LINES = [
    "使用Python编程很好。", "你好，{name}！", "文件%s不存在", "我有3本书。", "{name}さんは本を読む。",
    "「%s」を開けません", "今天下午，我会再见到你。", "東京へ行きます。",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    config = SentencePieceConfig(vocab_size=75, user_symbols=["{name}", "%s"])
    return SentencePiece.train(config, LINES * 5, "target")


@pytest.mark.parametrize(
    ("phrase", "text", "there"),
    [
        ("Python", "使用Python编程", True),
        ("Python", "使用Pythons编程", False),
        ("Python", "my Python", True),
        ("Python", "myPython", False),
        ("3", "我有3本书", True),
        ("3", "我有33本书", False),
        ("书", "一本书。", True),
        ("本", "日本語", True),
        ("𠮷", "𠮷野家", True),
        ("Python", "用Python𠮷", True),
        ("a b", "xa b, a\tb", True),
        ("a a", "aa a a", True),
        ("(a)", "x(a)x", True),
        ("a", "", False),
    ],
)
def test_words_end_where_a_script_without_spaces_begins(phrase, text, there):
    assert bool(WordPattern(phrase).search(text)) == there


@pytest.mark.parametrize("seed", range(20))
def test_words_are_found_as_by_one_regular_expression(seed):
    """Which says the same, but takes a millisecond to compile."""
    draw = random.Random(seed)
    letters = "aA1. 本\n_é"
    for _ in range(100):
        phrase = "".join(draw.choices(letters, k=draw.randint(1, 4))).strip()
        text = "".join(draw.choices(letters, k=draw.randint(0, 12)))
        if not phrase:
            continue
        word = r"[^\W本]"
        left = rf"(?<!{word})" if re.match(word, phrase) else ""
        right = rf"(?!{word})" if re.match(word, phrase[-1]) else ""
        inner = r"\s+".join(map(re.escape, phrase.split()))
        same = re.compile(left + inner + right, re.IGNORECASE)
        mine = WordPattern(phrase, re.IGNORECASE)
        assert [m.span() for m in mine.finditer(text)] == [m.span() for m in same.finditer(text)]
        for start in range(len(text)):
            a, b = mine.match(text, start), same.match(text, start)
            assert (a and a.span()) == (b and b.span())


def test_how_a_translation_spells_a_word_is_the_fewest_tokens_that_hold_it():
    """Among them other spellings than the tokenizer's own, which forbidding that one leaves over."""
    texts = [text for pair in tiny.pairs(300, 0) for text in pair]
    made = SentencePiece.train(SentencePieceConfig(vocab_size=40), texts, "target")
    speller, others = Speller(made), 0
    for text, ids in zip(
        texts[:40], SentencePiece(made.model, 0.5).sample(texts[:40], list(range(40))), strict=True
    ):
        words = {*text.split(), "seventeen"}
        found = speller.spelled(ids, words)
        assert len(found) == len(words) - 1
        for word in words - {"seventeen"}:
            (first,) = [
                own for own in found
                if WordPattern(word).search(made.decode([own])[0])
                and not any(word in made.decode([less])[0] for less in (own[1:], own[:-1]))
            ]  # fmt: skip
            assert any(ids[i : i + len(first)] == first for i in range(len(ids)))
            others += first != made.encode([word])[0]
    assert others > 20


def test_without_a_mark_at_the_beginning_of_words_nothing_tells_what_continues_one():
    assert Speller(Words()).word_inside is None


def test_placeholders_come_back_whole_and_without_spaces(tokenizer):
    assert tokenizer.decode(tokenizer.encode(LINES)) == LINES
    for line, symbol in (
        (LINES[1], "{name}"),
        (LINES[2], "%s"),
        (LINES[4], "{name}"),
        (LINES[5], "%s"),
    ):
        tokens = tokenizer.tokens(tokenizer.encode([line])[0])
        assert symbol in tokens or "▁" + symbol in tokens, tokens


@pytest.mark.parametrize("phrase", ["Python", "{name}", "%s", "3"])
def test_what_is_required_may_follow_a_character_without_a_space(tokenizer, phrase):
    speller = Speller(tokenizer)
    before = tokenizer.encode(["你好"])[0]
    written = {
        tokenizer.decode([before + ids])[0] for ids in speller.spellings(phrase, spaces=False)
    }
    assert "你好" + phrase in written
    if phrase in ("Python", "3"):  # where words are parted, this would be the middle of one
        written = {tokenizer.decode([before + ids])[0] for ids in speller.spellings(phrase)}
        assert written == {f"你好 {phrase}"}
    request = speller.request(Wishes(required=[[phrase]]), spaces=False)
    search = BeamSearch(BeamConfig(max_ratio=0, max_extra=8))
    source = torch.tensor([[3, 4, EOS]])
    (found,) = search(RandomModel(len(tokenizer), 1), source, torch.tensor([3]), [request])
    assert found[0].met and phrase in tokenizer.decode([found[0].tokens])[0]
