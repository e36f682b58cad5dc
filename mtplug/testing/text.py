"""Checks of tokenizers, corpora and tasks."""

from __future__ import annotations

import itertools
import pickle
import tempfile
from pathlib import Path

import torch

from mtplug.config import RunConfig, load_config
from mtplug.data.batching import Batch
from mtplug.data.corpora import Corpus
from mtplug.data.tags import tag
from mtplug.data.tokenizers import EOS, PAD, Tokenizer
from mtplug.tasks import Task
from mtplug.testing.subject import Subject, equal, require, same
from mtplug.testing.tiny import pairs, write_corpus


def check_tokenizer(
    name: str, *settings: str, texts: tuple[str, ...] = (), lossless: bool = True
) -> None:
    """Check a tokenizer against `mtplug-plugins docs tokenizer`.

    Args:
        name: of the tokenizer.
        settings: such as `vocab_size=23`.
        texts: what it is trained on; by default 400 sentences of the made-up languages.
        lossless: False for one that normalises, so that decoding need not give the text back.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("tokenizers", name, settings)
    known = list(texts) or [side for pair in pairs(200, seed=1) for side in pair]

    factory = subject.build()
    with subject.promise("factory"):
        require(isinstance(factory.joint, bool), f"`joint` is {factory.joint!r}")
        tokenizer = factory.train(iter(known), "joint")
        require(isinstance(tokenizer, Tokenizer), f"it is a {type(tokenizer).__name__}")
        said = factory.size("joint") if hasattr(factory, "size") else 0
        require(not said or len(tokenizer) <= said, f"{len(tokenizer)} ids, `size` says {said}")
    with subject.promise("ids"):
        ids = tokenizer.encode(known)
        same(len(ids), len(known), "number of encoded texts")
        for row in ids:
            bad = [i for i in row if not 1 < i < len(tokenizer)]
            require(not bad, f"ids {bad} among {len(tokenizer)}")
    if lossless:
        with subject.promise("text"):
            for text, decoded in zip(known, tokenizer.decode(ids), strict=True):
                same(decoded, text, "the text back")
    with subject.promise("special"):
        ended = [[*row, EOS, PAD] for row in ids]
        same(
            tokenizer.decode(ended), tokenizer.decode(ids), "the texts of ids with </s> and padding"
        )
    with subject.promise("tokens"):
        everything = list(range(len(tokenizer)))
        written = tokenizer.tokens(everything)
        same(len(written), len(everything), "number of written forms")
        require(all(isinstance(token, str) for token in written), "a written form is no text")
    with subject.promise("batch"):
        for text, row in list(zip(known, ids, strict=True))[:20]:
            same(list(tokenizer.encode([text])[0]), list(row), f"ids of '{text}' alone")
    with subject.promise("foreign"):
        foreign = ["", "Ω≈ç √∫ ʘ", "日本", "a\u0301", "  two  blanks "]
        same(len(tokenizer.encode(foreign)), len(foreign), "number of encoded texts")
        same(list(tokenizer.encode([""])[0]), [], "ids of empty text")
        same(tokenizer.decode([[]]), [""], "text of no ids")
    with subject.promise("frame"):
        for row in [*ids, []]:
            counts = tokenizer.frame(list(row))
            fits = min(counts) >= 0 and sum(counts) <= len(row)
            require(fits, f"it gives {counts} of {len(row)} ids")
    with subject.promise("plain"):
        plain = [tokenizer.plain(text) for text in known + foreign]
        same([tokenizer.plain(text) for text in plain], plain, "what `plain` gave, given to it")
        same(len(tokenizer.encode(plain)), len(plain), "number of encoded texts")
    with subject.promise("determinism"):
        again = subject.selected.build().train(iter(known), "joint")
        same(again.encode(known), ids, "ids of a second training")
    with subject.promise("save"), tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer", "joint")
        loaded = subject.selected.build().load(Path(folder) / "tokenizer", "joint")
        same(len(loaded), len(tokenizer), "size of the vocabulary")
        same(loaded.encode(known + foreign), tokenizer.encode(known + foreign), "ids")
        same(loaded.decode(ids), tokenizer.decode(ids), "texts")
        if not factory.joint:
            sides = {"source": known[::2], "target": known[1::2]}
            made = {s: subject.selected.build().train(iter(sides[s]), s) for s in sides}
            for side, one in made.items():
                one.save(Path(folder) / "both", side)
            for side, own in sides.items():
                loaded = subject.selected.build().load(Path(folder) / "both", side)
                same(loaded.encode(own), made[side].encode(own), f"ids of the {side} side")
    with subject.promise("processes"):
        copy = pickle.loads(pickle.dumps(tokenizer))
        same(copy.encode(known), ids, "ids of the copy")
    if tokenizer.languages:
        with subject.promise("languages"):
            _check_languages(tokenizer, known[:20])


def _check_languages(tokenizer: Tokenizer, texts: list[str]) -> None:
    for code in tokenizer.languages:
        same(tokenizer.language(code), code, "the language that a code stands for")
    directed = tokenizer.directed()
    fronts = []
    for both in itertools.permutations(tokenizer.languages[:2]):
        rows = directed.encode([f"{tag(*both)} {text}" for text in texts])
        bare = directed.encode(texts)
        heads = [row[: len(row) - len(own)] for row, own in zip(rows, bare, strict=True)]
        same([row[len(h) :] for h, row in zip(heads, rows, strict=True)], bare, "ids behind a tag")
        said = all(head and head == heads[0] for head in heads)
        require(said and set(heads[0]) <= directed.prefixes, f"in front of texts are {heads[:3]}")
        fronts.append(heads[0])
    require(
        len(fronts) == len({tuple(f) for f in fronts}), f"of different directions too: {fronts}"
    )


def check_corpus(name: str, *settings: str, languages: tuple[str, str] = ("xx", "en")) -> None:
    """Check a reader of corpora against `mtplug-plugins docs corpus`.

    Args:
        name: of the reader.
        settings: such as `path=/tmp/pairs.txt`, which lead it to at least one pair.
        languages: codes of source and target.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("corpora", name, settings)
    corpus = subject.build(languages, kind=Corpus)
    with subject.promise("files"):
        files = corpus.files()
        require(bool(files), "there is none")
        for file in files:
            require(Path(file).is_file(), f"{file} is no file")
    with subject.promise("pairs"):
        found = list(corpus)
        require(bool(found), "there is none")
        for pair in found:
            text = len(pair) == 2 and all(isinstance(side, str) for side in pair)
            require(text and not any({"\n", "\r"} & set(side) for side in pair), f"{pair!r}")
    with subject.promise("counts"):
        counted = corpus.bad_lines
        require(isinstance(counted, int) and counted >= 0, f"{counted!r}")
    with subject.promise("order"):
        same(list(corpus), found, "pairs of a second iteration")
        same(list(subject.selected.build(languages)), found, "pairs of a fresh reader")
    with subject.promise("counts"):
        same(corpus.bad_lines, counted, "skipped lines of a second iteration")


def check_task(name: str, *settings: str, run: tuple[str, ...] = ()) -> None:
    """Check a task against `mtplug-plugins docs task`, on the made-up corpus.

    Args:
        name: of the task.
        settings: its own, such as `source_lang=xx`; the languages of the corpus are xx and en.
        run: settings of the rest of a run that the task needs, such as `tokenizer.vocab_size=30`.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    fields = {setting.partition("=")[0] for setting in settings}
    known = {"source_lang": "xx", "target_lang": "en"}
    subject = Subject("tasks", name, settings)
    subject.build(kind=Task)
    languages = [
        f"{key}={value}"
        for key, value in known.items()
        if key not in fields and hasattr(subject.selected.config, key)
    ]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        written = write_corpus(folder)
        own = [f"task.{setting}" for setting in (*languages, *settings)]

        def configured(where: str) -> RunConfig:
            overrides = [f"task.name={name}", *own, f"run_dir={folder / where}", *run]
            return load_config(written, [f"data.root={folder}", *overrides])[0]

        def prepared(where: str) -> tuple[RunConfig, Task]:
            config = configured(where)
            task = config.task.build()
            task.prepare(config, folder / where, lambda text: None)
            return config, task

        with subject.promise("prepare"):
            (folder / "one").mkdir()
            config, task = prepared("one")
            sizes = len(task.source_tokenizer), len(task.target_tokenizer)
        batches = _some_batches(config, task)
        with subject.promise("batches"):
            require(bool(batches), "there is none")
            for batch in batches:
                _check_batch(batch, *sizes)
        with subject.promise("determinism"):
            (folder / "two").mkdir()
            _same_batches(_some_batches(*prepared("two")), batches, "in another folder")
        with subject.promise("reuse"):
            _same_batches(_some_batches(*prepared("one")), batches, "prepared again")
        with subject.promise("position"):
            data, other = task.training_data(config), task.training_data(config)
            plan = list(itertools.islice(data.remaining(), 3))
            data.advance(plan[0])
            other.restore(data.state())
            rest = [other.batch(one) for one in itertools.islice(other.remaining(), 2)]
            _same_batches(rest, [data.batch(one) for one in plan[1:]], "after a resume")
        with subject.promise("pairs"):
            for split in ("valid", "test"):
                for label, found in task.pairs(config, split):
                    require(isinstance(label, str) and bool(found), f"{split}: {label!r} is empty")
                    text = all(isinstance(side, str) for pair in found for side in pair)
                    require(text, f"{split}: {found[0]!r}")
        with subject.promise("load"):
            fresh = config.task.build()
            fresh.load(config, folder / "one")
            texts = [s for _, found in task.pairs(config, "valid") for pair in found for s in pair]
            for side in ("source_tokenizer", "target_tokenizer"):
                a, b = getattr(fresh, side), getattr(task, side)
                same(a.encode(texts), b.encode(texts), f"ids of {side}")
        with subject.promise("checksums"):
            sums = task.checksums(config)
            for split in ("train", "valid"):
                require(any(split in Path(file).name for file in sums), f"no file of {split}")
            named = {Path(file).name for file in sums}
            read = [*task.pairs(config, "valid")]
            for victim in sorted([*folder.glob("train.*"), *folder.glob("valid.*")]):
                whole = victim.read_text(encoding="utf-8")
                victim.write_text("".join(whole.splitlines(True)[::-1]), encoding="utf-8")
                said = f"{victim.name} was changed, they were not"
                if victim.name in named:
                    require(task.checksums(config) != sums, said)
                else:  # then it must not matter
                    same(task.pairs(config, "valid"), read, f"{said}: pairs")
                    (folder / victim.name.replace(".", "-")).mkdir()
                    after = _some_batches(*prepared(victim.name.replace(".", "-")))
                    _same_batches(after, batches, f"now; {said}")
                victim.write_text(whole, encoding="utf-8")


def _some_batches(config: RunConfig, task: Task) -> list[Batch]:
    data = task.training_data(config)
    return [data.batch(one) for one in itertools.islice(data.remaining(), 3)]


def _same_batches(found: list[Batch], expected: list[Batch], when: str) -> None:
    same(len(found), len(expected), f"number of batches {when}")
    for a, b in zip(found, expected, strict=True):
        equal(a.source_tokens, b.source_tokens, f"source_tokens {when}")
        equal(a.target_tokens, b.target_tokens, f"target_tokens {when}")


def _check_batch(batch: Batch, source_size: int, target_size: int) -> None:
    sides = [
        ("source", batch.source_tokens, batch.source_lengths, source_size),
        ("target", batch.target_tokens, batch.target_lengths, target_size),
    ]
    if batch.aligned:
        require(batch.target_tokens.shape == batch.source_tokens.shape, "labels are not (B, S)")
        behind = batch.source_tokens == PAD
        require(bool((batch.target_tokens[behind] == PAD).all()), "there are labels of padding")
        require(
            bool((batch.target_tokens < target_size).all()), f"a label is above {target_size - 1}"
        )
        sides = sides[:1]
    for side, tokens, lengths, size in sides:
        require(tokens.dtype == torch.int64, f"{side}_tokens are {tokens.dtype}")
        behind = torch.arange(tokens.shape[1])[None] >= lengths[:, None]
        require(bool((tokens[behind] == PAD).all()), f"{side}_tokens are not padded with 0")
        require(bool((tokens[~behind] != PAD).all()), f"{side}_tokens hold 0 before their end")
        last = tokens.gather(1, lengths[:, None] - 1)
        require(bool((last == EOS).all()), f"{side}_tokens do not end with </s>")
        require(bool((tokens < size).all()), f"{side}_tokens hold ids above {size - 1}")
        require(bool((tokens >= 0).all()), f"{side}_tokens hold ids below 0")
    if batch.aligned:
        return
    first = batch.prev_output_tokens[:, 0]
    inside = (first > 0) & (first < target_size)
    require(bool(inside.all()), "prev_output_tokens start neither with </s> nor with a tag")
    real = batch.target_tokens != PAD
    shifted = batch.prev_output_tokens[:, 1:][real[:, 1:]]
    equal(
        shifted, batch.target_tokens[:, :-1][real[:, 1:]], "prev_output_tokens and shifted target"
    )
