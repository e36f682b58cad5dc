"""Translation of sentences."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mtplug
from mtplug.config.base import base_folder
from mtplug.config.build import component_from_plain, load_resolved, to_plain
from mtplug.config.schema import RunConfig
from mtplug.data.build import READ_FOR, build_store
from mtplug.data.corpora import Corpus, View, has_text
from mtplug.data.directions import Directions
from mtplug.data.encoding import Encoding
from mtplug.data.filters import FilterReports, active, filtered
from mtplug.data.pools import Pools, StorePools, check_weights
from mtplug.data.resample import Resample
from mtplug.data.store import Store, checksum
from mtplug.data.tags import TAG, TAGS, Tagged, check_tag, head, tag, without_tag
from mtplug.data.text_pools import TextPools
from mtplug.data.tokenizer_texts import Texts
from mtplug.data.tokenizers import UNK, Tokenizer
from mtplug.data.training import TrainingData
from mtplug.data.workers import own_cores
from mtplug.errors import UserError
from mtplug.files import begun, is_run, read_json, whole_folder
from mtplug.registry import Selected, per_run_settings
from mtplug.tasks.base import Report, Task, not_told

HEAD = 10_000
"""Pairs of each corpus that tell whether its text is what a tokenizer takes."""
AGAIN = "remove it, and the same command makes the tokenizer again"


@dataclass
class TranslationConfig:
    """Translation from one language into another."""

    source_lang: str = ""
    """code of the source language, such as en"""
    target_lang: str = ""
    """code of the target language; decides how BLEU tokenises"""
    language_tags: bool = False
    """one model for several directions: each source begins with a tag such as <2de> that says what to
    write (Johnson et al. 2017), or with what the base's tokenizer has for it, as that of NLLB-200; corpora say their
    `source_lang` and `target_lang`"""


class Translation(Task):
    """Sentence by sentence. Subclasses may override `transform`.

    Attributes:
        stores: of the training corpora, after `prepare`.
    """

    languages: tuple[str, str]
    stores: list[Store]

    def __init__(self, config: TranslationConfig):
        self.config = config
        self.target_lang = config.target_lang
        self.languages = (config.source_lang, config.target_lang)

    def transform(self, source: str, target: str) -> tuple[str, str]:
        """What is made of a raw pair of any split before anything else sees it."""
        return source, target

    def joined(self, corpus: Corpus, run: RunConfig) -> Corpus:
        """What is learnt from the pairs of a training corpus that filters leave, once there are tokenizers."""
        return corpus

    def makes(self) -> str:
        """What stands for the task where it is kept what a tokenizer or store was made by."""
        return type(self).__qualname__

    def tokenizer(self, run: RunConfig) -> Selected:
        """The tokenizer that is trained, with what the task wants among its symbols."""
        config = run.tokenizer.config
        if not hasattr(config, "user_symbols"):
            return run.tokenizer
        missing = [s for s in self.wanted_symbols(run) if s not in config.user_symbols]
        symbols = [*config.user_symbols, *missing]
        return replace(run.tokenizer, config=replace(config, user_symbols=symbols))

    def wanted_symbols(self, run: RunConfig) -> list[str]:
        """Pieces that are never cut: here the prefixes of corpora."""
        given = [p for c in run.data.train for p in c.config.prefix.split()]
        return list(dict.fromkeys(given))

    # --- raw text -----------------------------------------------------------------------------

    def corpora(self, run: RunConfig, split: str) -> list[Corpus]:
        """The readers of a split, with paths below `data.root`."""
        chosen: list[Selected] = getattr(run.data, split)
        readers = []
        for selected in chosen:
            config = selected.config
            if getattr(config, "root", None) == "":
                config = replace(config, root=run.data.root)
            if getattr(config, "on_error", None) == "inherit":
                config = replace(config, on_error=run.data.on_error)
            own = (config.source_lang, config.target_lang)
            languages = tuple(a or b for a, b in zip(own, self.languages, strict=True))
            reader = selected.component.factory(config, languages)
            if prefix := config.prefix.strip():
                if self.sourceless:
                    raise UserError(
                        f"data.{split}: {prefix}: prefix is put in front of source texts, which this task does not have"
                    )
                reader = Transformed(reader, functools.partial(_prefixed, prefix))
            readers.append(reader)
        return readers

    def target_langs(self, run: RunConfig, split: str) -> list[str]:
        return [c.config.target_lang or self.target_lang for c in getattr(run.data, split)]

    def address(self, text: str, target_lang: str = "", source_lang: str = "") -> str:
        if self.directions is not None:
            return self.directions.address(text, target_lang, source_lang)
        if not self.tags:
            return super().address(text, target_lang, source_lang)
        not_told(source_lang)
        if not text.strip() or check_tag(text, self.tags):
            return text
        language = target_lang or self.target_lang
        if language not in self.tags:
            what = f"target language {language} is not among" if language else "choose one of"
            raise UserError(
                f"{what} {', '.join(self.tags)}, which this run writes: give --target-lang, or lines "
                f"that begin with a tag such as {tag(self.tags[0])}"
            )
        return f"{tag(language)} {text}"

    def written_lang(self, text: str) -> str:
        found = TAG.match(text) if self.tags else None
        return found.group(2).partition(":")[0] if found else self.target_lang

    def bare(self, text: str) -> str:
        return without_tag(text) if self.tags else text

    def _addressed(self, corpus: Corpus, language: str) -> Corpus:
        """A corpus with the tag of its target language, where there are tags; text that begins with one keeps it."""
        if not self.tags:
            return corpus
        if (directions := self.directions) is not None:
            both = language, corpus.languages[0]
            directions.codes(*both)  # what there is not is told at once
            return Transformed(corpus, lambda s, t: (directions.addressed(s, *both), t))
        if language not in self.tags:
            raise UserError(
                f"data: {corpus.files()[0]}: target_lang '{language}' is none of those that the run writes "
                f"({', '.join(self.tags)}); set it beside the corpus"
            )

        def addressed(source: str, target: str) -> tuple[str, str]:
            told = not source.strip() or head(source, self.tags)
            return (source if told else f"{tag(language)} {source}"), target

        return Transformed(corpus, addressed)

    def pairs(self, run: RunConfig, split: str) -> list[tuple[str, list[tuple[str, str]]]]:
        result = []
        self.tags = self.tags or self._tags(run, Path(run.run_dir) / "tokenizer")
        corpora = self.corpora(run, split)
        for corpus, language, label in zip(
            corpora, self.target_langs(run, split), self._labels(corpora, split), strict=True
        ):
            view = self._addressed(Transformed(corpus, self.transform), language)
            result.append((label, list(view)))
            if not result[-1][1]:
                raise UserError(f"data.{split}: {label} holds no sentence pair")
        return result

    def references(self, run: RunConfig, split: str) -> list[list[list[str]]]:
        found = []
        for chosen in getattr(run.data, split):
            further = getattr(chosen.config, "references", [])
            sets = []
            for name in [chosen.config.target, *further] if further else []:
                config = replace(chosen.config, target=name, references=[])
                one = with_corpora(run, split, [replace(chosen, config=config)])
                (corpus,) = self.corpora(one, split)
                sets.append([self.transform(*pair)[1] for pair in corpus])
                if corpus.bad_lines:
                    raise UserError(
                        f"data.{split}: {name}: {corpus.bad_lines:,} lines cannot be read, and with several references "
                        "none is skipped; fix them"
                    )
            found.append(sets[1:])
        return found

    def _labels(self, corpora: list[Corpus], split: str) -> list[str]:
        """A name for each corpus: that of its first file, behind that of its folder where several are called alike."""
        files = [_files(corpus, f"data.{split}.{n}")[0] for n, corpus in enumerate(corpora)]
        names = [file.stem for file in files]
        if self.tags:
            names = [f"{n}.{'-'.join(c.languages)}" for n, c in zip(names, corpora, strict=True)]
        labels: list[str] = []
        for file, name in zip(files, names, strict=True):
            label = f"{file.absolute().parent.name}-{name}" if names.count(name) > 1 else name
            count = (label, *(f"{label}-{n}" for n in range(2, len(files) + 2)))
            labels.append(next(one for one in count if one not in labels))
        return labels

    def check_data(self, run: RunConfig, report: Report) -> None:
        """Are there files, and can validation and test data be read?"""
        if not run.data.train:
            raise UserError("data.train: no training corpus is given")
        check_weights(_weights(run))
        if run.training.finetune_from:
            self._check_languages_of_base(run)
        for number, corpus in enumerate(self.corpora(run, "train")):
            if getattr(run.data.train[number].config, "references", []):
                raise UserError(
                    f"data.train.{number}.references are for scores, not for training; list each as a corpus"
                )
            _files(corpus, f"data.train.{number}")
            filtered(corpus, run.data.filters)  # refuses what does not fit its languages
            check_files = getattr(run.data.train[number].component.factory, "check_files", None)
            if check_files and not begun(run.run_dir):  # a run that goes on has read them
                check_files(corpus.config)
        for split in ("valid", "test"):
            for number, corpus in enumerate(self.corpora(run, split)):
                _files(corpus, f"data.{split}.{number}")
                count = filled = 0
                for pair in Transformed(corpus, lambda source, target: (source, target)):
                    count, filled = count + 1, filled + has_text(pair)
                if not filled:
                    blank = f": all of {count:,} are empty" if count else ""
                    raise UserError(f"data.{split}: {corpus}: no sentence pair{blank}")
                if corpus.bad_lines:
                    report(
                        f"data: {corpus}: {count:,} pairs; {corpus.bad_lines:,} unreadable (skipped)"
                    )
            if any(self.references(run, split)) and not self.translates:
                raise UserError(
                    f"data.{split}: references: task {run.task.name} has no translations to score"
                )
        if self._makes_tokenizer(run):
            factory = run.tokenizer.build()
            unfit = getattr(factory, "unfit", None)
            asked = [(side, which, unfit) for side, which in self._sides(factory.joint) if unfit]
            for text in self._unfit(run, asked):
                if not begun(run.run_dir):
                    raise UserError(text)
                report(text)  # it goes on as an earlier version began it

    def _makes_tokenizer(self, run: RunConfig) -> bool:
        """Whether the run's tokenizer is made of its configuration, and is not another run's."""
        return not run.training.finetune_from

    def _unfit(
        self,
        run: RunConfig,
        asked: list[tuple[str, tuple[int, ...], Callable[[Iterator[str]], str]]],
    ) -> Iterator[str]:
        """What is wrong with the text of corpora.

        Args:
            asked: (side, what of a pair it has, `unfit` of its tokenizer or of what makes it).
        """
        for split in ("train", "valid", "test"):
            parts = zip(self.corpora(run, split), self.references(run, split), strict=True)
            for number, (corpus, further) in enumerate(parts):
                for side, which, unfit in asked:
                    pairs = itertools.islice(Transformed(corpus, self.transform), HEAD)
                    texts = (pair[s] for pair in pairs for s in which)
                    sets = map(iter, further if 1 in which else [])
                    if why := next(filter(None, map(unfit, (texts, *sets))), ""):
                        yield f"data.{split}.{number}: {corpus}: the {side} text is {why}"

    def checksums(self, run: RunConfig) -> dict[str, str]:
        files = [
            file
            for split in ("train", "valid")
            for corpus in self.corpora(run, split)
            for file in corpus.files()
        ]
        return {str(file): checksum(file) for file in files}

    # --- tokenizer and store ------------------------------------------------------------------

    def prepare(self, run: RunConfig, run_dir: Path, report: Report) -> None:
        corpora = [
            filtered(
                Transformed(corpus, self.transform),
                run.data.filters,
                functools.partial(self.wording, prefix=chosen.config.prefix),
            )
            for corpus, chosen in zip(self.corpora(run, "train"), run.data.train, strict=True)
        ]
        sums = [[checksum(f) for f in corpus.files()] for corpus in corpora]
        self._tokenizers(run, run_dir / "tokenizer", corpora, sums, report)
        self._tell_unread(run, report)
        self.report = report
        self.filter_reports = FilterReports(run_dir / "data" / "filters.json")
        self.filtered = corpora
        tokenizers = (self.source_tokenizer, self.target_tokenizer)
        if not begun(run.run_dir):  # a tokenizer that was another run's could not be asked before
            sides = zip(self._sides(run.tokenizer.build().joint), tokenizers, strict=False)
            for text in self._unfit(run, [(*side, made.unfit) for side, made in sides]):
                raise UserError(text)
        self.encoding = Encoding(
            tokenizers,
            run.data.max_length,
            run.data.on_long,
            keep_text=any(t.samples for t in tokenizers),
            sourceless=self.sourceless,
            heads=self.heads,
        )
        self.views = [
            self._addressed(self.joined(corpus, run), language)
            for corpus, language in zip(corpora, self.target_langs(run, "train"), strict=True)
        ]
        self.stores = []
        if run.data.store:
            self._write_stores(run, run_dir, sums)
        else:
            report(
                "data: no store (data.store=false); each epoch reads and tokenises the corpora anew"
            )

    def _write_stores(self, run: RunConfig, run_dir: Path, sums: list[list[str]]) -> None:
        """Those of the training corpora; what is there already is opened."""
        report, reports, encoding = self.report, self.filter_reports, self.encoding
        languages = self.target_langs(run, "train")
        parts = zip(self.filtered, self.views, sums, languages, strict=True)
        for index, (corpus, view, files, language) in enumerate(parts):
            folder = run_dir / "data" / f"train-{index}"
            existed = folder.exists()
            reports.expect(corpus)
            made_from = {
                "files": files,
                "tokenizer": _digest(run_dir / "tokenizer"),
                "corpus": _stored_settings(run, index),
                "task": self.makes(),
                **_read(corpus),
                **self._addresses(view, language),
                **_unlike_the_base(run),
                **self._filters(run),
            }
            store = build_store(
                folder, view, encoding, made_from, workers=run.data.workers, report=report
            )
            counts = store.meta["counts"]
            verb = ("rebuilt" if existed else "wrote") if store.fresh else "opened"
            for line in reports.of(folder.name, corpus):
                report(line)
            report(f"data: {verb} {folder}: {counts['pairs']:,} pairs{encoding.told(counts)}")
            if unknown := encoding.unknown(counts):
                report(f"data: {corpus}: {unknown}")
            self.stores.append(store)

    def _tell_unread(self, run: RunConfig, report: Report) -> None:
        """A base's vocabulary gets no new symbols: is one of them nothing that the model can read?"""
        base, tokenizer = run.training.finetune_from, self.source_tokenizer
        if not (base and hasattr(run.tokenizer.config, "user_symbols")):
            return
        cut = [s for s in self.wanted_symbols(run) if UNK in tokenizer.encode([s])[0]]
        if cut:
            report(
                f"data: {' '.join(cut)} in front of sources is not in the vocabulary of {base}, and is cut into unknown "
                f"tokens; one that starts from its weights learns it: training.init_from={base} tokenizer.model={base} "
                "instead of training.finetune_from"
            )

    def _addresses(self, corpus: Corpus, language: str) -> dict[str, Any]:
        """What tags make the store of a corpus depend on."""
        if self.directions is not None:
            return {"direction": list(self.directions.codes(language, corpus.languages[0]))}
        return {"tags": list(self.tags)} if self.tags else {}

    def _filters(self, run: RunConfig) -> dict[str, Any]:
        """What filters make tokenizer and store depend on."""
        if not active(run.data.filters):
            return {}
        return {"filters": to_plain(run.data.filters), "languages": list(self.languages)}

    def _tokenizers(
        self,
        run: RunConfig,
        folder: Path,
        corpora: list[Corpus],
        sums: list[list[str]],
        report: Report,
    ) -> None:
        chosen = self.tokenizer(run)
        made_from = {
            "config": to_plain(chosen),
            "files": sums,
            "task": self.makes(),
            "corpora": [_stored_settings(run, n) | _read(c) for n, c in enumerate(corpora)],
            **self._filters(run),
        }
        if run.training.finetune_from:
            base = base_folder(Path(run.training.finetune_from))
            if not folder.is_dir() and base is not None:
                report(f"tokenizer: that of {base}")
                with whole_folder(folder) as made:
                    shutil.copytree(base / "tokenizer", made, dirs_exist_ok=True)
                    self._keep_tags(run, made, base)
            return self.load(run, folder.parent)
        stamp = folder / "tokenizer.json"
        if stamp.is_file():
            told = read_json(stamp, AGAIN)
            wanted = made_from
            if "user_symbols" not in told["config"]:  # of a version where it was not asked for any
                wanted = {**made_from, "config": to_plain(run.tokenizer)}
            if _with_defaults(told, wanted) == wanted:
                return self.load(run, folder.parent)
        factory = chosen.build()
        given = getattr(chosen.config, "model", "")  # whose tokenizer is taken
        learns = not given or getattr(chosen.config, "extend", False)
        texts = Texts(corpora, getattr(chosen.config, "sample_size", 0) if learns else 0)
        with whole_folder(folder, replace=True) as made:
            for side, which in self._sides(factory.joint):
                if not given:
                    report(f"tokenizer: training {chosen.name} on the {side} text")
                text = texts.of(which)
                first = next(text, None)
                if first is None:
                    raise UserError(f"data.train: the {side} side holds no text")
                factory.train(itertools.chain([first], text), side).save(made, side)
            if given:
                report(f"tokenizer: that of {given}")
                # A run, or a file of a run's tokenizer.
                other = Path(given) if Path(given).is_dir() else Path(given).parent.parent
                if is_run(other) and (other / "tokenizer").is_dir():
                    self._keep_tags(run, made, other)
            (made / stamp.name).write_text(json.dumps(made_from, indent=1))
        return self.load(run, folder.parent)

    def _sides(self, joint: bool) -> list[tuple[str, tuple[int, ...]]]:
        """(side, what of a pair it is trained on) for each tokenizer."""
        return [("joint", (0, 1))] if joint else [("source", (0,)), ("target", (1,))]

    def _written(self, run: RunConfig) -> list[str]:
        """The languages that the training corpora have for targets; none without language tags."""
        found = sorted(set(self.target_langs(run, "train")))
        if not self.translates:
            return []
        if not getattr(self.config, "language_tags", False):
            if len(found) > 1:
                raise UserError(
                    f"data.train: corpora have {len(found)} target languages ({', '.join(found)}); set "
                    "task.language_tags=true, so that the model is told which one to write"
                )
            return []
        if "" in found:
            raise UserError(
                "task.language_tags: each corpus of data.train needs a target_lang, or the task one"
            )
        return found

    def _tags(self, run: RunConfig, folder: Path) -> tuple[str, ...]:
        """The languages that there is a tag for: those written, or where the tokenizer in `folder` was another run's,
        those that it says."""
        written = self._written(run)
        given = folder / TAGS
        return tuple(read_json(given, AGAIN, list) if written and given.is_file() else written)

    @staticmethod
    def _tags_of(run_dir: Path) -> tuple[str, ...]:
        """Those of another run."""
        run = load_resolved(run_dir / "config.yaml")
        task = run.task.build()
        return task._tags(run, run_dir / "tokenizer") if isinstance(task, Translation) else ()

    def _keep_tags(self, run: RunConfig, folder: Path, other: Path) -> None:
        """Tags of a run whose tokenizer is taken over stay, also those that this run's corpora do not write."""
        written = self._written(run)
        if written and _source_tokenizer(other).languages:
            return  # they are the vocabulary's own
        tags = sorted({*written, *self._tags_of(other)}) if written else []
        if tags != written:
            (folder / TAGS).write_text(json.dumps(tags))

    def _check_languages_of_base(self, run: RunConfig) -> None:
        written, base = self._written(run), base_folder(Path(run.training.finetune_from))
        read = {c.config.source_lang or self.languages[0] for c in run.data.train}
        if base is not None and self.translates and (written or len(read) > 1):
            tokenizer = _source_tokenizer(base)
            if tokenizer.languages:
                return self._check_languages(run, tokenizer, bool(written))
        tags = self._tags_of(base) if written and base is not None else tuple(written)
        if missing := [language for language in written if language not in tags]:
            raise UserError(
                f"data.train: target_lang {missing[0]}: the base {base} writes {', '.join(tags) or 'no language by a tag'}; "
                f"a run with more languages starts from its weights: training.init_from={base} tokenizer.model={base} "
                "instead of training.finetune_from"
            )

    def _check_languages(self, run: RunConfig, tokenizer: Tokenizer, tags: bool) -> None:
        """Raises `UserError` for languages of corpora that a model which is told them does not have, or is not told."""
        codes = set()
        for split in ("train", "valid", "test") if tags else ("train",):
            for number, chosen in enumerate(getattr(run.data, split)):
                for n, key in enumerate(("source_lang", "target_lang")):
                    name = getattr(chosen.config, key) or self.languages[n]
                    try:
                        code = tokenizer.language(name)
                    except UserError as error:
                        if tags:
                            why = error if name else f"it is missing, and so is task.{key}"
                            raise UserError(f"data.{split}.{number}.{key}: {why}") from None
                        continue
                    codes |= {code} if key == "source_lang" else set()
        if len(codes) > 1 and not tags:
            raise UserError(
                f"data.train: corpora have {len(codes)} source languages ({', '.join(sorted(codes))}); set "
                "task.language_tags=true, so that the model is told which one it reads"
            )

    def _directions(self, run: RunConfig) -> Directions | None:
        """What texts say of languages that the loaded tokenizer has itself, if it has any and is to be asked for them."""
        asked = self.translates and getattr(self.config, "language_tags", False)
        if not asked or not self.source_tokenizer.languages:
            return None
        learnt = [
            (c.config.source_lang or self.languages[0], c.config.target_lang or self.languages[1])
            for c in run.data.train
        ]
        return Directions(self.source_tokenizer, learnt, self.languages)

    def load(self, run: RunConfig, run_dir: Path) -> None:
        factory = run.tokenizer.build()
        folder = run_dir / "tokenizer"
        made = [factory.load(folder, side) for side, _ in self._sides(factory.joint)]
        self.source_tokenizer, self.target_tokenizer = made[0], made[-1]
        self.directions = self._directions(run)
        own = self.source_tokenizer.languages if self.directions else ()
        self.tags = own or self._tags(run, folder)
        if self.tags:
            joint = self.target_tokenizer is self.source_tokenizer
            plain = self.source_tokenizer
            self.source_tokenizer = plain.directed() if own else Tagged(plain, self.tags)
            self.target_tokenizer = self.source_tokenizer if joint else self.target_tokenizer
        given = [p for c in run.data.train if (p := c.config.prefix.strip())]
        heads = self.source_tokenizer.encode(given) if given else []
        self.heads = tuple(sorted(map(tuple, heads), key=len, reverse=True))

    def training_data(self, run: RunConfig) -> TrainingData:
        weights, t = _weights(run), run.training
        how = (run.data.pool, run.data.temperature)
        pools: Pools
        if run.data.store:
            pools = StorePools(self.stores, weights, run.seed, *how)
        else:
            pools = TextPools(self.views, self.encoding, weights, *how, report=self.report)
            for index, corpus in enumerate(self.filtered):  # which were read to be counted
                for line in self.filter_reports.of(f"train-{index}", corpus):
                    self.report(line)
        change = None
        if self.encoding.keep_text:
            change = Resample(self.encoding.tokenizers, run.seed, run.data.max_length)
        return TrainingData(
            pools,
            t.max_tokens,
            run.seed,
            t.packing,
            change,
            t.max_sentences,
            self.change,
            workers=run.data.workers or own_cores(),
            last_epoch=t.max_epochs,
        )


def _stored_settings(run: RunConfig, index: int) -> dict[str, Any]:
    """Those of a corpus's reader that decide what is stored; stores of earlier versions don't tell some, unless they are
    set."""
    settings = to_plain(run.data.train[index])
    for undecided in ("weight", "root"):
        settings.pop(undecided, None)
    for added in ("prefix", "references", "source_lang_field", "target_lang_field"):
        if not settings.get(added):
            settings.pop(added, None)
    if settings["documents"]:
        del settings["documents"]
    return {**settings, "on_error": run.data.on_error}


def _read(corpus: Corpus) -> dict[str, Any]:
    """What decides, beside its settings, what a reader finds in its files: by its languages it chooses fields or units."""
    return {READ_FOR: list(corpus.languages)}


def _unlike_the_base(run: RunConfig) -> dict[str, Any]:
    """What the ids of a store depend on that the files of the tokenizer do not tell: where a run that fine-tunes has it as
    its base has it, its stores never told."""
    own, base = per_run_settings(run.tokenizer), run.training.finetune_from
    folder = base_folder(Path(base)) if own and base else None
    if folder is None or own == per_run_settings(load_resolved(folder / "config.yaml").tokenizer):
        return {}
    return {"tokenizer_settings": own}


def _files(corpus: Corpus, key: str) -> list[Path]:
    """The files of a corpus; an error says which corpus it is."""
    try:
        return corpus.files()
    except UserError as error:
        place = re.compile(r"^corpus: (\w+(?=: ))?")
        told = place.sub(lambda m: f"{key}.{m[1]}" if m[1] else f"{key}: ", str(error))
        raise UserError(told) from None


def _source_tokenizer(run_dir: Path) -> Tokenizer:
    """That of another run, without what its task puts around it."""
    factory = load_resolved(run_dir / "config.yaml").tokenizer.build()
    made: Tokenizer = factory.load(run_dir / "tokenizer", "joint" if factory.joint else "source")
    return made


def with_corpora(run: RunConfig, split: str, chosen: list[Selected]) -> RunConfig:
    """The same run with other corpora in a split."""
    data: Any = {split: chosen}
    return replace(run, data=replace(run.data, **data))


def _weights(run: RunConfig) -> list[float]:
    return [c.config.weight for c in run.data.train]


def _prefixed(prefix: str, source: str, target: str) -> tuple[str, str]:
    return (f"{prefix} {source}" if source.strip() else source), target


class Transformed(View):
    """A corpus as its task sees it."""

    def __init__(self, corpus: Corpus, transform: Callable[[str, str], tuple[str, str]]):
        super().__init__(corpus)
        self.transform = transform

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number, pair in enumerate(self.corpus, 1):
            given = pair if isinstance(pair, (tuple, list)) else (pair,)
            if len(given) != 2 or not all(isinstance(text, str) for text in given):
                kinds = ", ".join(type(one).__name__ for one in given)
                raise UserError(
                    f"corpus {type(self.corpus).__name__} gives ({kinds}); it has to be "
                    "(source, target), two texts"
                )
            try:
                made = self.transform(*pair)
            except UserError as error:
                raise UserError(f"{self.corpus}: pair {number}: {error}") from None
            yield made


def _with_defaults(made_from: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What a tokenizer was made from, with what is told since it was: a tokenizer is not trained again because mtplug
    is newer."""
    config = to_plain(component_from_plain("tokenizers", made_from["config"]))
    return {"corpora": wanted["corpora"], **made_from, "config": config}


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        whole.update(f"{file.name}\0{checksum(file)}\0".encode())
    return whole.hexdigest()


@mtplug.hookimpl
def register_tasks(register):
    register("translation", Translation, TranslationConfig)
