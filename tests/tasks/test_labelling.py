"""Labels of sentences and words: from a configuration to predictions."""

import json
import random

import numpy as np
import pytest
import torch

import mtplug
from mtplug.config import load_config
from mtplug.data.tokenizers import EOS
from mtplug.errors import UserError
from mtplug.search import Wishes
from mtplug.testing.tiny import LEXICON
from mtplug.training.run import check
from tests import tiny

WORDS = list(LEXICON)
COMMON = (
    "architecture.name=transformer_encoder", "criterion.smoothing=0", "training.max_updates=100",
    "data.workers=1", "lr_scheduler.warmup_updates=10", "optimizer.lr=1e-2", "training.max_tokens=512",
    "architecture.dropout=0",
    # pieces of one or two letters, so that words have several
    "tokenizer={model_type: bpe, vocab_size: 26}",
)  # fmt: skip


def rule(words):
    """A sentence is `high` if a word of the second half of the lexicon begins it; each such word is a span."""
    big = [WORDS.index(w) >= 5 for w in words]
    tags = ["B-BIG" if b else "O" for b in big]
    return "high" if big[0] else "low", " ".join(tags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("labelling")
    tiny.write_corpus(made)
    rng = random.Random(3)
    for split, count in (("train", 400), ("valid", 40), ("test", 40)):
        texts = [rng.choices(WORDS, k=rng.randint(2, 6)) for _ in range(count)]
        for name, which in (("class", 0), ("tags", 1)):
            lines = [f"{' '.join(words)}\t{rule(words)[which]}\n" for words in texts]
            (made / f"{split}.{name}").write_text("".join(lines))
    return made


def settings(task, name, *more):
    data = [f"data.{s}=[{{name: tsv, path: {s}.{name}}}]" for s in ("train", "valid", "test")]
    return f"task={{name: {task}}}", *data, *COMMON, *more


CLASS = settings("classification", "class", "validation.metrics=[accuracy, macro_f1]",
                 "validation.best_metric=macro_f1", "validation.every_updates=50")  # fmt: skip
TAGS = settings(
    "tagging", "tags", "validation.metrics=[accuracy, span_f1]", "validation.best_metric=span_f1"
)


@pytest.mark.parametrize(("name", "chosen"), [("class", CLASS), ("tags", TAGS)])
def test_a_run_learns_a_rule_and_is_evaluated(name, chosen, folder, capsys):
    from mtplug.cli.evaluate import main

    run = tiny.train(folder, name, *chosen)
    capsys.readouterr()
    assert main([str(run), "--json"]) == 0
    scores = {k: v["score"] for k, v in json.loads(capsys.readouterr().out)["test"].items()}
    assert all(value > 90 for value in scores.values()), scores
    translator = mtplug.load(run, device="cpu")
    texts = ["we ka", "ka we we lo"]
    wanted = [rule(text.split())[name == "tags"] for text in texts]
    assert translator.translate([*texts, ""]) == [*wanted, ""]
    (best, *_), *_ = translator.nbest(texts)
    assert best.tokens == wanted[0].split() and all(s <= 0 for s in best.token_scores)
    with pytest.raises(UserError, match=r"takes no prefix, required or forbidden phrases$"):
        translator.nbest(["ka"], wishes=[Wishes("low")])
    # Pieces of a text each have labels of their words, but not each one for all of it.
    split = ("data.on_long=split", "data.max_length=8")
    if name == "class":
        with pytest.raises(
            UserError, match="a text has one label, and its pieces would have several"
        ):
            mtplug.load(run, overrides=split)
    else:
        (text,) = mtplug.load(run, device="cpu", overrides=split).translate(["we ka " * 6])
        assert len(text.split()) == 12
    with pytest.raises(UserError, match="labels text"):
        translator.score(["ka"], ["low"])


@pytest.mark.parametrize("chosen", [CLASS, TAGS])
def test_a_dry_run_searches_no_labels(chosen, folder, capsys):
    """They are read off; it was refused with the message for text that such a model is to write."""
    tiny.train(folder, "dry", *chosen, "--dry-run")
    assert "the configuration is ready" in capsys.readouterr().err


def prepared(folder, name, chosen):
    run, _ = load_config(
        folder / "run.yaml", [f"run_dir={folder / name}", f"data.root={folder}", *chosen]
    )
    task = run.task.build()
    (folder / name).mkdir(exist_ok=True)
    task.prepare(run, folder / name, lambda text: None)
    return run, task


def test_labels_stand_where_words_begin(folder):
    run, task = prepared(folder, "places", TAGS)
    data = task.training_data(run)
    batch = data.batch(next(iter(data.remaining())))
    for tokens, labels, length in zip(
        batch.source_tokens, batch.target_tokens, batch.source_lengths, strict=True
    ):
        words = task.source_tokenizer.decode([tokens[: length - 1].tolist()])[0].split()
        assert rule(words)[1].split() == task.target_tokenizer.tokens(labels[labels > 0].tolist())
        pieces = task.source_tokenizer.tokens(tokens[: length - 1].tolist())
        assert len(pieces) > len(words)
        assert all(p.startswith("▁") for p, label in zip(pieces, labels, strict=False) if label)


ODD = [
    "ka",
    "ka\u2581lo",
    "\u2581",
    "ka\u00a0lo",
    "mi\u3000",
    "\u00a0",
    "n\u200cu",
    "\u200b",
    "ﷺ",
    "lo",
]
"""Words in which a tokenizer, or what it normalises text with, may see blanks or nothing."""


@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize(("kind", "size"), [("bpe", 26), ("word", 12)])
def test_each_word_has_one_label_whatever_blanks_are_in_it(folder, normalization, kind, size):
    """Other labels than its own were learnt for a word behind such a one, or told of it; and behind two words
    unknown to a model of words, of which SentencePiece makes one piece."""
    lines = [" ".join(ODD[n:] + ODD[:n]) for n in range(len(ODD))]
    labels = {word: f"L{n}" for n, word in enumerate(ODD)}
    rows = [
        f"ka {line} ka\tL0 {' '.join(labels[w] for w in line.split(' '))} L0\n" for line in lines
    ]
    (folder / "train.odd").write_text("".join(rows))
    config = f"tokenizer={{model_type: {kind}, vocab_size: {size}, normalization: {normalization}}}"
    odd = [f"data.{split}=[{{name: tsv, path: train.odd}}]" for split in ("train", "valid")]
    chosen = (*TAGS, *odd, "data.test=null", "training.max_updates=2", config)
    run = tiny.train(folder, f"odd-{normalization}-{kind}", *chosen)
    _, task = prepared(folder, run.name, chosen)
    pairs = task.stores[0].block(0)
    for line, source, target in zip(lines, pairs.source.rows(), pairs.target.rows(), strict=True):
        assert task.starts[source].sum() == len(target) == len(ODD) + 2
        told = task.target_tokenizer.tokens(target.tolist())
        assert told == ["L0", *(labels[w] for w in line.split(" ")), "L0"]
    lines = [f"ka жж {line} ыы éé ka" for line in lines]
    written = mtplug.load(run, device="cpu").translate(lines)
    assert [len(labels.split()) for labels in written] == [len(ODD) + 5] * len(lines)


def test_the_label_of_a_sentence_stands_at_its_end(folder):
    run, task = prepared(folder, "ends", CLASS)
    data = task.training_data(run)
    batch = data.batch(next(iter(data.remaining())))
    assert torch.equal(batch.target_tokens > 0, batch.source_tokens == EOS)
    assert task.target_tokenizer.pieces[3:] == ["high", "low"]


def test_a_head_on_a_pretrained_encoder(folder):
    line = ("task={name: masked_lm, source_lang: xx, target_lang: en}", *COMMON[:2], "training.max_updates=2",
            "tokenizer={model_type: bpe, vocab_size: 60}", "validation.best_metric=loss", "data.test=null")  # fmt: skip
    base = tiny.train(folder, "mlm", *line)
    run = tiny.train(
        folder, "head", *CLASS, f"tokenizer.model={base}", "tokenizer.vocab_size=8000",
        f"training.init_from={base}", "training.max_updates=2",
    )  # fmt: skip
    (record,) = json.loads((run / "initialisation.json").read_text())
    taken = {e["name"].split(".")[0] for e in record["taken"]}
    assert taken == {"encoder_embedding", "encoder", "encoder_norm", "head"}
    assert [e["name"] for e in record["fresh"]] == ["output.weight"]


@pytest.mark.parametrize("more", [(), ("peft.name=lora",)])
def test_a_base_with_other_labels_is_refused_and_the_way_told(folder, more):
    """It was told that output.weight is missing in the checkpoint."""
    size, *rest = (
        "tokenizer={model_type: bpe, vocab_size: 60}",
        *COMMON[:2],
        "training.max_updates=2",
    )
    line = (
        "task={name: masked_lm, source_lang: xx, target_lang: en}",
        *rest,
        "validation.best_metric=loss",
    )
    base = tiny.train(folder, "mlm-base", *line, size, "data.test=null")
    given = [f"run_dir={folder / 'refused'}", f"data.root={folder}", *CLASS, size, *more]
    run, _ = load_config(folder / "run.yaml", [*given, f"training.finetune_from={base}"])
    way = rf"training\.init_from={base} tokenizer\.model={base} and the architecture that the task wants instead of training\.finetune_from"
    way += " and without peft" if more else "$"
    with pytest.raises(UserError, match=f"was trained on masked_lm and its output has .*{way}"):
        check(run, print)
    run, _ = load_config(
        folder / "run.yaml", [*given[:2], size, *more, f"training.finetune_from={base}"]
    )
    way = rf"training\.init_from={base} tokenizer\.model={base} and the architecture that the task wants instead of training\.finetune_from$"
    with pytest.raises(
        UserError, match=f"labels text, task translation needs one that writes it; .*{way}"
    ):
        check(run, print)
    assert not (folder / "refused").exists()


def test_what_cannot_be_is_told(folder):
    (folder / "train.wrong").write_text("ka lo\tO\n")
    with pytest.raises(
        UserError,
        match=r"train\.wrong: pair 1: task tagging: 'ka lo' has 2 words, its labels 'O' are 1",
    ):
        prepared(folder, "wrong", (*TAGS, "data.train=[{name: tsv, path: train.wrong}]"))
    with pytest.raises(UserError, match="labels cannot be split"):
        prepared(folder, "wrong", (*TAGS, "data.on_long=split"))


def test_long_texts_are_cut_with_their_labels(folder):
    run, task = prepared(folder, "cut", (*TAGS, "data.on_long=truncate", "data.max_length=4"))
    data = task.training_data(run)
    for ids in data.remaining():
        batch = data.batch(ids)
        assert batch.source_tokens.shape[1] <= 5 and np.all(
            (batch.target_tokens > 0).sum(1).numpy() >= 1
        )
