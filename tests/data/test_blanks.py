"""Runs of blanks, which mean something in commands and code."""

import pytest

import mtplug
from mtplug import testing
from mtplug.data.tokenizers import SentencePieceConfig, SentencePieceFactory
from mtplug.search.wishes import Wishes
from tests import tiny

COMMANDS = ["ls  -l\t-a", "for x in a;  do\techo   $x; done", "grep -c 'a    b' f"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_that_keeps_them_gives_them_back(kind):
    made = {}
    for keep in (True, False):
        config = SentencePieceConfig(model_type=kind, vocab_size=28, keep_blanks=keep, sampling=0.3)
        made[keep] = SentencePieceFactory(config).train(COMMANDS * 20, "joint")
    assert made[True].decode(made[True].encode(COMMANDS)) == COMMANDS
    drawn = [made[True].sample(COMMANDS, [seed] * 3) for seed in range(5)]
    assert all(made[True].decode(one) == COMMANDS for one in drawn)
    assert len({str(one) for one in drawn}) > 1
    assert made[False].decode(made[False].encode(COMMANDS))[0] == "ls -l\t-a"


@pytest.mark.parametrize(("keep", "text"), [(True, "one  two\tthree"), (False, "one two three")])
def test_translations_hold_them_only_where_the_tokenizer_keeps_them(tmp_path, keep, text):
    folder = tmp_path
    tiny.write_corpus(folder)
    file = folder / "train.en"
    file.write_text(file.read_text().replace("two", "two\t").replace("\t ", "\t"))
    run = testing.train(
        folder, f"tokenizer={{vocab_size: 60, model_type: char, keep_blanks: {str(keep).lower()}}}",
        f"data.root={folder}", updates=2, name="run",
    )  # fmt: skip
    wish = Wishes(prefix="one  two\tthree")
    ((best,),) = mtplug.load(run, device="cpu").nbest(["ka"], wishes=[wish], beam=1)
    assert best.text.startswith(text) and not best.unmet
