"""Models of SentencePiece that were made elsewhere."""

import io

import pytest
import sentencepiece

from mtplug.data.tokenizers import (
    EOS,
    PAD,
    UNK,
    SentencePiece,
    SentencePieceConfig,
    SentencePieceFactory,
)
from mtplug.errors import UserError
from tests import tiny

TEXT = [f"{xx} {en}" for xx, en in tiny.pairs(200, 3)]
STRANGE = [*TEXT[:20], "one ☃ two", "é", "vu wé ☃☃", "one<sym>two"]
LAYOUTS = {
    "its own": {},
    "no ends": {"bos_id": -1, "eos_id": -1},
    "marian's": {"eos_id": 0, "unk_id": 1, "bos_id": -1},
    "other names": {"pad_id": 3, "bos_piece": "<begin>", "eos_piece": "<end>", "unk_piece": "<?>"},
    "bytes": {"byte_fallback": True, "pad_id": 3, "vocab_size": 290},
    "with symbols": {"user_defined_symbols": ["<sym>", "<pad>"]},
}


def made(path, **settings):
    """A model as `spm_train` makes it."""
    written = io.BytesIO()
    settings = {"model_type": "unigram", "vocab_size": 32} | settings
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=written, minloglevel=2, **settings
    )
    path.write_bytes(written.getvalue())
    return path


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("settings", LAYOUTS.values(), ids=LAYOUTS)
def test_special_symbols_of_other_numbers(tmp_path, kind, settings):
    """Text is cut as SentencePiece cuts it, what is unknown is UNK, and nothing else has the ids of special symbols."""
    path = made(tmp_path / "theirs.model", model_type=kind, **settings)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = SentencePiece.train(SentencePieceConfig(model=str(path)), [], "joint")
    assert ours.tokens([PAD, EOS, UNK]) == ["<pad>", "</s>", "<unk>"]
    for text, ids in zip(STRANGE, ours.encode(STRANGE), strict=True):
        wanted = theirs.encode(text)
        assert [i == UNK for i in ids] == [i == theirs.unk_id() for i in wanted]
        assert not {PAD, EOS} & set(ids)
        known = [k for k, i in enumerate(ids) if i != UNK]
        assert ours.tokens([ids[k] for k in known]) == [
            theirs.id_to_piece(wanted[k]) for k in known
        ]
        assert ours.decode([ids]) == [theirs.decode(wanted)]
    again = SentencePiece.train(SentencePieceConfig(model=str(path), sampling=0.1), [], "joint")
    assert again.model == ours.model


def test_a_model_for_each_language(tmp_path):
    source = made(tmp_path / "xx.model")
    target = made(tmp_path / "en.model", vocab_size=30)
    config = SentencePieceConfig(joint=False, model=str(source), target_model=str(target))
    factory = SentencePieceFactory(config)
    factory.check_files(config)
    assert [len(factory.train([], side)) for side in ("source", "target")] == [32, 30]
    with pytest.raises(UserError, match=r"one file for two vocabularies.*target_model"):
        factory.check_files(SentencePieceConfig(joint=False, model=str(source)))
    with pytest.raises(UserError, match=r"gone\.model is no run"):
        factory.check_files(
            SentencePieceConfig(joint=False, model=str(source), target_model="gone.model")
        )
    with pytest.raises(ValueError, match="joint=false"):
        SentencePieceConfig(model=str(source), target_model=str(target))


NEW = ["".join(chr(0x4E00 + (7 * n + k * k) % 60) for k in range(5)) for n in range(400)]
"""Text in a script that has many characters, which stand beside each other in many ways."""


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_what_extends_a_model_spells_a_new_script_before_it_joins_its_characters(kind):
    """Of BPE's pieces characters are the last, and none was among those that were added: a third of a Chinese text's tokens
    stayed unknown with any `extend`."""
    base = SentencePiece.train(SentencePieceConfig(kind, 32), TEXT, "joint")
    config = SentencePieceConfig(kind, model="base", extend=80)
    made = base.extended(base.learnt(config, NEW, "joint"))
    pieces = made.tokens(list(range(32, len(made))))
    assert len(pieces) <= 80 and set("".join(NEW)) <= set(pieces)
    assert any(len(piece) > 1 for piece in pieces)
    assert not any(UNK in ids for ids in made.encode([*NEW, *TEXT]))
    assert made.encode(TEXT) == base.encode(TEXT)


def test_what_extends_a_model_is_not_learnt_from_symbols(tmp_path):
    """The prefix of each line was the first thing that was joined."""
    base = SentencePiece.train(SentencePieceConfig("bpe", 60), TEXT, "joint")
    base.save(tmp_path, "base")
    model = str(tmp_path / "base.model")
    config = SentencePieceConfig("bpe", model=model, extend=4, user_symbols=["<bt>", "</s>"])
    made = SentencePiece.train(config, [f"<bt> {text}" for text in TEXT], "joint")
    pieces = made.tokens(list(range(60, len(made))))
    assert (
        pieces[0] == "<bt>"
        and len(pieces) == 5
        and not any(set("<>b") & set(p) for p in pieces[1:])
    )
