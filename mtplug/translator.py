"""From text to translations: the one path of validation, `mtplug-evaluate`, `mtplug-translate` and Python."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtplug.architectures.base import Model, why_unfit
from mtplug.config.build import load_resolved
from mtplug.config.given import replaced
from mtplug.config.schema import RunConfig
from mtplug.data.batching import Batch, collate, token_batches
from mtplug.data.corpora import one_line, whole_characters
from mtplug.data.separated import SEPARATOR, Separated, together, windows
from mtplug.data.splitting import split
from mtplug.data.tags import head
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError
from mtplug.exporting.base import Engine
from mtplug.files import is_run
from mtplug.nn.modes import evaluating
from mtplug.nn.positions import positions_of
from mtplug.search.answers import Answers
from mtplug.search.base import Hypothesis, Request, SearchStrategy
from mtplug.search.combine import Ensemble, same_vocabulary
from mtplug.search.coverage import cross_attention
from mtplug.search.scoring import forced_scores
from mtplug.search.shortlist import Lexicon, Shortlisted
from mtplug.search.wishes import Policy, Speller, Wishes
from mtplug.tasks.base import Task

_BREAKS = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
"""Characters that a line of output cannot contain."""
_COUNTING = threading.Lock()
_BLANKS = re.compile(f"[ \t{_BREAKS.pattern[1:]}")
"""Characters of which a run becomes one space where blanks mean nothing; U+00A0 and U+3000 are text."""


@dataclass
class Translation:
    """One translation of a text.

    Attributes:
        text: the translation.
        score: what the search ranked it by.
        tokens: its subwords.
        token_scores: log-probability of each, `</s>` last, in nats.
        finished: False if the search's length limit cut it off.
        unmet: wishes that it does not meet, such as a required phrase.
        notes: what happened to the text on the way, such as that it was cut.
        source_tokens: the source's subwords; with attention only.
        attention: (target tokens, source tokens) cross-attention, without `</s>`; if asked for.
        word_alignment: (source word, target word) for each two of which a token of the target word attends most
            to a token of the source word; words are separated by blanks. With attention only.
    """

    text: str
    score: float
    tokens: list[str]
    token_scores: list[float]
    finished: bool
    unmet: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source_tokens: list[str] | None = None
    attention: np.ndarray | None = None
    word_alignment: list[tuple[int, int]] | None = None
    parts: list[list[int]] = field(default_factory=list, repr=False)
    """ids, for each piece that the source was split into"""

    @property
    def alignment(self) -> list[tuple[int, int]] | None:
        """For each token of the translation (number of the source token it looked at most, its own)."""
        if self.attention is None:
            return None
        return [(int(row.argmax()), t) for t, row in enumerate(self.attention) if row.size]


class Translator:
    """A model with what it needs to translate text.

    Args:
        model: put into evaluation mode for each call, and back.
        task: with loaded tokenizers.
        search: how to decode.
        max_length: longest input in tokens.
        on_long: what happens to longer ones: `error`, `split` (pieces are translated one by one),
            and `truncate` or `skip`, which both cut: a line is never lost.
        batch_tokens: padded source tokens of a batch, all hypotheses counted.

    Attributes:
        target_lang: which language is written, of those that a run with language tags can.
        too_long: texts so far that had more tokens than `max_length`.
        window: texts that follow each other are translated together, so many at most; of a task of documents. An empty
            text ends a document.
        engine: searches instead of the model, which is still used for attention and to score given text.
        lexicon: gives what `search.shortlist` chooses from; asked once.
    """

    engine: Engine | None = None
    lexicon: Callable[[], Lexicon] | None = None

    def __init__(
        self,
        model: Model,
        task: Task,
        search: SearchStrategy,
        max_length: int = 256,
        on_long: str = "truncate",
        batch_tokens: int = 16384,
    ):
        self.model, self.task = model, task
        self.search: SearchStrategy = Answers(task) if task.aligned else search
        self.max_length = int(min(max_length, positions_of(model) - 1))  # `</s>` has one, too
        self.on_long, self.batch_tokens = on_long, batch_tokens
        self.target_lang = ""
        self.window = task.window
        self.too_long = 0
        self._checked: SearchStrategy | None = None

    def translate(self, texts: Iterable[str], **search: Any) -> list[str]:
        """The best translation of each text; an empty text gives an empty one.

        Args:
            texts: sentences.
            search: settings of the search strategy for this call, such as `beam=5`.
        """
        return [best[0].text for best in self.nbest(texts, token_scores=False, **search)]

    def nbest(
        self,
        texts: Iterable[str],
        progress: Callable[[int], None] = lambda done: None,
        wishes: Sequence[Wishes | None] | None = None,
        attention: bool = False,
        token_scores: bool = True,
        **search: Any,
    ) -> list[list[Translation]]:
        """All translations that the search returns for each text, best first.

        Args:
            texts: sentences.
            progress: told how many sentences are done.
            wishes: what each translation must and must not hold.
            attention: fill in `Translation.attention`.
            token_scores: false lets an engine leave out `Translation.token_scores`, to be faster.
            search: settings of the search strategy for this call, such as `beam=5`.

        Raises:
            UserError: a text is too long and `on_long` is error, a setting does not exist, or what is wished
                cannot be taken.
        """
        written = checked_texts(texts)
        given = checked_wishes(written, wishes)
        together = [0] * len(written)
        return self._together(written, given, together, progress, attention, token_scores, search)

    def _together(
        self,
        written: list[str],
        given: list[Wishes | None],
        documents: Sequence[int],
        progress: Callable[[int], None],
        *how: Any,
    ) -> list[list[Translation]]:
        """`nbest` of texts, of which neighbours with the same number of their document may share a window."""
        with self._undisturbed():
            if self.window > 1:
                return self._in_windows(written, given, documents, progress, *how)
            return self._nbest(written, given, progress, *how)

    def _nbest(
        self,
        written: list[str],
        given: list[Wishes | None],
        progress: Callable[[int], None],
        attention: bool,
        token_scores: bool,
        search: dict[str, Any],
    ) -> list[list[Translation]]:
        """`nbest` of texts each by itself."""
        strategy = self._strategy(search)
        if self.engine is not None:
            strategy = self.engine.strategy(strategy, token_scores)
        model = self.model if self.engine else self._model(strategy)
        config = getattr(strategy, "config", None)
        if not self.engine and (reason := why_unfit(type(strategy), config, model)):
            raise UserError(f"search: {type(strategy).__name__}: {reason}")
        texts = [self._address(text) for text in written]
        policy = Policy(strategy.config)
        pieces = self._pieces(texts)
        if self.task.continues:  # each text is the beginning of what is written, given no source
            if any(w and w.prefix.strip() for w in given):
                raise UserError(
                    "prefix: this run continues its text, which is the prefix; write that in its place"
                )
            pieces = [[[]] for _ in texts]
            given = [replace(w or Wishes(), prefix=t) for w, t in zip(given, written, strict=True)]
        asked = [policy.wishes(text, own) for text, own in zip(texts, given, strict=True)]
        requests = self._requests(asked, strategy, model) if any(asked) else None
        found = self._search(model, strategy, pieces, requests, progress)
        if requests is not None:
            self._avoid_other_spellings(model, strategy, pieces, asked, requests, found)
        readable = [self._readable(parts) for parts in found]
        if isinstance(self.task.target_tokenizer, Separated):  # one sentence stays one
            for text, row in zip(texts, readable, strict=True):
                for translation in row if SEPARATOR not in text else ():
                    translation.text = self._clean(translation.text.replace(SEPARATOR, " "))
        for wish, row in zip(asked, readable, strict=True):
            for translation in row if wish else ():
                translation.unmet = wish.unmet(translation.text)
        readable = strategy.rank(texts, readable)
        if attention:
            self._attend(model, pieces, readable)
        self._note_long(texts, pieces, readable)
        self._note_unfit(self.task.source_tokenizer, self._inputs(texts), readable)
        return readable

    def _in_windows(
        self,
        written: list[str],
        given: list[Wishes | None],
        documents: Sequence[int],
        progress: Callable[[int], None],
        *how: Any,
    ) -> list[list[Translation]]:
        """`nbest` of texts with their neighbours. A window of which another number of sentences came back is translated
        once more, in halves; texts with wishes stand by themselves."""
        texts = [self._address(text) for text in written]
        lengths = [(len(ids),) for ids in self._encoded(texts)]
        tags = [head(text, getattr(self.task, "tags", ())) for text in texts]
        bare = [text[len(tag) :] for text, tag in zip(texts, tags, strict=True)]
        of = [
            None if wish or not text or SEPARATOR in text else (document, tag)
            for text, tag, wish, document in zip(bare, tags, given, documents, strict=True)
        ]
        results: list[list[Translation]] = [[] for _ in texts]

        def search(groups: list[list[int]]) -> list[list[list[Translation]]]:
            asked = [tags[g[0]] + together([bare[n] for n in g]) for g in groups]
            wishes = [given[g[0]] for g in groups]  # those that have any stand by themselves
            done = sum(map(bool, results))
            left = len(texts) - done
            try:
                rows = self._nbest(
                    asked, wishes, lambda n: progress(done + n * left // len(groups)), *how
                )
            except NoPosition as error:
                raise NoPosition({groups[n][0]: why for n, why in error.why.items()}) from None
            except TooLong as error:
                raise error.of(groups[error.number][0]) from None
            return [
                self._cut(row, text, len(g))
                for row, text, g in zip(rows, asked, groups, strict=True)
            ]

        groups = windows(lengths, of, self.window, self.max_length)
        torn: set[int] = set()
        while groups:
            halves = []
            for group, rows in zip(groups, search(groups), strict=True):
                for n, row in zip(group, rows, strict=False):
                    results[n] = row
                    for translation in row if len(group) == 1 and n in torn else ():
                        translation.notes.append("translated without its neighbours")
                if not rows:
                    middle = len(group) // 2
                    halves += [group[:middle], group[middle:]]
                    torn.update(group)
            groups = halves
        return results

    def _cut(self, row: list[Translation], source: str, count: int) -> list[list[Translation]]:
        """The translations of a window as those of each of its sentences, of which there are `count`; empty if the best
        has another number of them."""
        if count == 1:
            return [row]
        tokenizers = self.task.source_tokenizer, self.task.target_tokenizer
        assert isinstance(tokenizers[0], Separated) and isinstance(tokenizers[1], Separated)
        sources = tokenizers[0].parts(self._encoded([source])[0])
        found: list[list[Translation]] = [[] for _ in range(count)]
        for rank, whole in enumerate(row):
            parts = tokenizers[1].parts([i for ids in whole.parts for i in ids])
            texts = [self._clean(text) for text in tokenizers[1].decode(parts)]
            if len(parts) != count or not all(texts):
                if not rank:
                    return []
                continue
            s = t = 0
            for k, (text, ids, given) in enumerate(zip(texts, parts, sources, strict=True)):
                own = replace(
                    whole,
                    text=text,
                    tokens=whole.tokens[t : t + len(ids)],
                    token_scores=whole.token_scores[t : t + len(ids) + 1],  # with what ends it
                    finished=whole.finished or k + 1 < count,
                    notes=list(whole.notes),
                    parts=[ids],
                )
                if whole.attention is not None and whole.source_tokens is not None:
                    own.source_tokens = whole.source_tokens[s : s + len(given)]
                    own.attention = whole.attention[t : t + len(ids), s : s + len(given)]
                    own.word_alignment = self._word_alignment(own, words_of(tokenizers[0], given))
                found[k].append(own)
                s, t = s + len(given) + 1, t + len(ids) + 1
        return found

    def score(
        self,
        sources: Iterable[str],
        targets: Iterable[str],
        attention: bool = False,
        *,
        cut: bool = False,
    ) -> list[Translation]:
        """Given translations as the model scores them (forced decoding).

        Args:
            sources: texts; of a task that continues text they mean nothing.
            targets: a translation of each.
            attention: fill in `Translation.attention`.
            cut: leave out of both what the model has no positions for.

        Returns:
            `score` is the mean log-probability of the tokens, `</s>` counted, in nats.

        Raises:
            NoPosition: a text is too long for the model's positions.
            UserError: there are more sources or more targets.
        """
        if self.task.aligned:
            raise UserError("this run labels text: there are no translations to score")
        if not self.model.autoregressive:
            raise UserError(
                f"{type(self.model).__name__} does not predict the next token, and cannot score given translations"
            )
        targets = checked_texts(targets)
        sources = [""] * len(targets) if self.task.continues else checked_texts(sources)
        check_as_many(sources, targets)
        pairs = list(
            zip(
                self._encoded([self._address(s) for s in sources]),
                self.task.target_tokenizer.encode([one_line(t) for t in targets]),
                strict=True,
            )
        )
        model = self._model(self._strategy({}))
        if cut and (most := positions_of(model)) < math.inf:
            pairs = [(s[: int(most) - 1], t[: int(most) - 1]) for s, t in pairs]
        lengths = [("source", [len(s) for s, _ in pairs]), ("target", [len(t) for _, t in pairs])]
        _check_positions(lengths, model)
        results: list[Translation | None] = [None] * len(pairs)
        tokens = self.task.target_tokenizer.tokens
        with self._undisturbed():
            for batch in self._batches(pairs, 1):
                for i, scores in zip(batch.ids.tolist(), forced_scores(model, batch), strict=True):
                    mean, ids = sum(scores) / len(scores), list(pairs[i][1])
                    results[i] = Translation(
                        targets[i].strip(), mean, tokens(ids), scores, True, parts=[ids]
                    )
            scored = [r for r in results if r is not None]
            if attention:
                self._attend(model, [[source] for source, _ in pairs], [[t] for t in scored])
        rows = [[t] for t in scored]
        self._note_unfit(self.task.source_tokenizer, self._inputs(sources), rows)
        self._note_unfit(self.task.target_tokenizer, targets, rows)
        return scored

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """What a program has set for its own tensors does not reach in: another default device, autocast."""
        device = next(self.model.parameters()).device.type
        with contextlib.ExitStack() as stack:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            yield

    def _model(self, strategy: SearchStrategy) -> Model:
        """What the strategy makes of the model, in evaluation mode, in which the model itself is while it searches."""
        made = strategy.searched_model(self.model, self.task)
        if made is not self.model:
            with evaluating(self.model):  # which it may be a part of
                made.eval()
        return made

    @functools.cached_property
    def _speller(self) -> Speller:
        return Speller(self.task.target_tokenizer)

    @functools.cached_property
    def _lexicon(self) -> Lexicon:
        assert self.lexicon is not None
        return self.lexicon()

    @functools.cached_property
    def _keeps_blanks(self) -> bool:
        """Are runs of blanks text to the tokenizer?"""
        run, single = self.task.target_tokenizer.encode(["a  a", "a a"])
        return run != single

    @property
    def _spaced(self) -> bool:
        """Does the language of the translations put spaces between words?"""
        language = self.target_lang or self.task.target_lang
        return language.replace("_", "-").split("-")[0].lower() not in _UNSPACED_LANGUAGES

    def _requests(
        self, asked: list[Wishes], strategy: SearchStrategy, model: Model
    ) -> list[Request]:
        """What is wished, in ids; `UserError` if the strategy takes no wishes, or the model no such prefix."""
        if "requests" not in inspect.signature(strategy.__call__).parameters:
            instead = "; use search.name=beam" if model.autoregressive else ""
            instead = "; translate without --backend" if self.engine else instead
            raise UserError(
                f"search: {type(strategy).__name__} takes no prefix, required or forbidden "
                f"phrases{instead}"
            )
        requests = [self._speller.request(wish, self._spaced) for wish in asked]
        _check_positions([("prefix", [len(r.prefix) for r in requests])], model)
        return requests

    def _search(
        self,
        model: Model,
        strategy: SearchStrategy,
        pieces: list[list[list[int]]],
        requests: list[Request] | None,
        progress: Callable[[int], None],
    ) -> list[list[list[Hypothesis]]]:
        """For each text, for each of its pieces the hypotheses."""
        owners = [(n, k) for n, parts in enumerate(pieces) for k in range(len(parts))]
        found: list[list[list[Hypothesis]]] = [[[] for _ in parts] for parts in pieces]
        flat = [(pieces[n][k], pieces[n][k]) for n, k in owners]
        done = 0
        short = 0 if self.engine else getattr(strategy.config, "shortlist", 0)
        if short and (self.lexicon is None or self.task.continues):
            raise UserError("search.shortlist: only translations by a run have one; set it to 0")
        for batch in self._batches(flat, strategy.width):
            of = None
            if requests is not None:
                # Of a split text the first piece has to contain what is required; what is forbidden, none may.
                of = [
                    requests[n] if k == 0 else Request(forbidden=requests[n].forbidden)
                    for n, k in (owners[i] for i in batch.ids)
                ]
            source = (batch.source_tokens, batch.source_lengths)
            if short:
                ids = self._lexicon.candidates(batch.source_tokens, short, of)
                results = Shortlisted(model, ids).search(strategy, *source, of)
            else:
                results = strategy(model, *source, *([] if of is None else [of]))  # type: ignore[call-arg]
            for i, hypotheses in zip(batch.ids, results, strict=True):
                n, k = owners[i]
                found[n][k] = hypotheses
            done += len(batch)
            progress(done)
        return found

    def _batches(self, pairs: list[tuple[list[int], list[int]]], width: int) -> Iterator[Batch]:
        """Pairs of like length together, longest first, on the model's device and in its mode."""
        device = next(self.model.parameters()).device
        source, target = (np.array([len(p[s]) for p in pairs], np.int64) for s in (0, 1))
        order = np.argsort(-np.maximum(source, target), kind="stable")
        budget = max(self.batch_tokens // width, 1)
        with evaluating(self.model):
            for ids in token_batches(order, source, target, budget) if pairs else ():
                yield collate([pairs[i] for i in ids], ids).to(device)

    def _avoid_other_spellings(
        self,
        model: Model,
        strategy: SearchStrategy,
        pieces: list[list[list[int]]],
        asked: list[Wishes],
        requests: list[Request],
        found: list[list[list[Hypothesis]]],
    ) -> None:
        """Search again where a forbidden word was written in other subwords than foreseen."""
        for _ in range(5):
            again = []
            for n, wish in enumerate(asked):
                spelled = [
                    ids
                    for part in found[n]
                    for hypothesis in part
                    for ids in self._speller.spelled(hypothesis.tokens, wish.forbidden)
                ]
                if any(ids not in requests[n].forbidden for ids in spelled):
                    old = requests[n]
                    requests[n] = replace(old, forbidden=old.forbidden + spelled)
                    again.append(n)
            if not again:
                return
            chosen = [requests[n] for n in again]
            parts_again = [pieces[n] for n in again]
            better = self._search(model, strategy, parts_again, chosen, lambda done: None)
            for n, parts in zip(again, better, strict=True):
                found[n] = parts

    def _note_long(
        self, texts: list[str], pieces: list[list[list[int]]], readable: list[list[Translation]]
    ) -> None:
        for text, parts, row in zip(texts, pieces, readable, strict=True):
            if (len(parts) == 1 and len(parts[0]) < self.max_length) or not parts:
                continue
            count = len(self._encoded([text])[0])
            done = "split" if len(parts) > 1 else "cut"
            for translation in row if count > self.max_length else ():
                translation.notes.append(f"longer than {self.max_length} tokens, {done}: {count}")

    @staticmethod
    def _note_unfit(
        tokenizer: Tokenizer, texts: list[str], readable: list[list[Translation]]
    ) -> None:
        """Tell of each text that its tokenizer does not take, should it not take them all together."""
        if not tokenizer.unfit(texts):
            return
        for text, row in zip(texts, readable, strict=True):
            note = tokenizer.unfit([text])
            for translation in row:
                if note and note not in translation.notes:
                    translation.notes.append(note)

    def _attend(
        self, model: Model, pieces: list[list[list[int]]], readable: list[list[Translation]]
    ) -> None:
        """Where the architecture has cross-attention to show, and there is a source to look at."""
        if self.task.continues:
            return
        jobs = [
            (ids, translation.parts[k], translation, k)
            for parts, row in zip(pieces, readable, strict=True)
            for translation in row
            for k, ids in enumerate(parts)
        ]
        blocks: dict[int, dict[int, np.ndarray]] = {}
        for batch in self._batches([(source, target) for source, target, _, _ in jobs], 1):
            weights = cross_attention(model, batch)
            if weights is None:
                return
            for i, matrix in zip(batch.ids.tolist(), weights, strict=True):
                blocks.setdefault(id(jobs[i][2]), {})[jobs[i][3]] = matrix[:-1, :-1].cpu().numpy()
        source = self.task.source_tokenizer
        for parts, row in zip(pieces, readable, strict=True):
            tokens = [t for ids in parts for t in source.tokens(ids)]
            source_words = words_of(source, [i for ids in parts for i in ids])
            for translation in row:
                translation.source_tokens = tokens
                of = blocks.get(id(translation), {})
                translation.attention = _block_diagonal([of[k] for k in range(len(parts))])
                translation.word_alignment = self._word_alignment(translation, source_words)

    def _word_alignment(
        self, translation: Translation, source_words: list[int]
    ) -> list[tuple[int, int]]:
        ids = [i for part in translation.parts for i in part]
        words = words_of(self.task.target_tokenizer, ids)
        pairs = {(source_words[s], words[t]) for s, t in translation.alignment or ()}
        return sorted((s, t) for s, t in pairs if min(s, t) >= 0)

    def _address(self, text: str) -> str:
        return self.task.address(one_line(text), self.target_lang)

    def _strategy(self, settings: dict[str, Any]) -> SearchStrategy:
        """The strategy with other settings for a call. What the settings name is looked for when it is first used:
        a translator may be loaded for its model alone."""
        strategy = self.search
        config: Any = getattr(strategy, "config", None)
        if settings:
            try:
                strategy = type(strategy)(replaced(config, settings))  # type: ignore[call-arg]
            except ValueError as error:
                raise UserError(f"search: {error}") from None
        if strategy is not self._checked:
            strategy.check_files(strategy.config)
            self._checked = strategy
        return strategy

    def _pieces(self, texts: list[str]) -> list[list[list[int]]]:
        """The ids of each text, in pieces that fit; none for an empty text."""
        encoded = self._encoded(texts)
        return [self._fit(ids, number) if ids else [] for number, ids in enumerate(encoded)]

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return self.task.source_tokenizer.encode(self._inputs(texts))

    def _inputs(self, texts: list[str]) -> list[str]:
        return [self.task.input_text(text) for text in texts]

    def _count_long(self, more: int) -> None:
        with _COUNTING:  # threads may share a translator
            self.too_long += more

    def _fit(self, ids: list[int], number: int) -> list[list[int]]:
        limit = self.max_length
        if len(ids) <= limit:
            return [ids]
        self._count_long(1)
        if self.on_long == "error":
            raise TooLong(
                f"sentence {number + 1} has {len(ids)} tokens, data.max_length is {limit}; "
                "raise it, or set data.on_long to truncate or split",
                number,
            )
        if self.on_long == "split":
            (parts,) = split([(self.task.source_tokenizer, ids)], limit, self.task.heads)
            return parts
        return [ids[:limit]]

    def _readable(self, parts: list[list[Hypothesis]]) -> list[Translation]:
        if not parts:
            return [Translation("", 0.0, [], [], True)]
        tokenizer = self.task.target_tokenizer
        space = " " if self._spaced else ""
        result = []
        for rank in range(min(map(len, parts))):
            row = [hypotheses[rank] for hypotheses in parts]
            text = space.join(tokenizer.decode([h.tokens for h in row]))
            translation = Translation(
                self._clean(text),
                sum(h.score for h in row) / len(row),
                [t for h in row for t in tokenizer.tokens(h.tokens)],
                [s for h in row for s in h.token_scores],
                all(h.finished for h in row),
                parts=[h.tokens for h in row],
            )
            result.append(translation)
        return result

    def _clean(self, text: str) -> str:
        """A text that a tokenizer made, on one line."""
        return (_BREAKS if self._keeps_blanks else _BLANKS).sub(" ", text).strip()


def words_of(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """For each token the number, from 0, of the word it is part of; -1 of one that writes nothing."""
    texts = tokenizer.decode([ids[:n] for n in range(len(ids) + 1)])
    words = [text.split() for text in texts]
    return [
        len(now) - 1 if "".join(before) != "".join(now) else -1
        for before, now in itertools.pairwise(words)
    ]


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list, lone surrogates replaced; a single string would be taken for a list of its letters.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a list of texts, got one text; give [{texts[:30]!r}]")
    made = list(texts)
    for number, text in enumerate(made):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}]: expected a text, got {text!r}")
    return [whole_characters(text) for text in made]


def check_as_many(sources: Sequence[str], targets: Sequence[str]) -> None:
    """Raises `UserError` for sources and translations of them that are not as many."""
    if len(sources) != len(targets):
        raise UserError(f"{len(sources):,} sources and {len(targets):,} translations of them")


def checked_wishes(
    texts: Sequence[str], wishes: Sequence[Wishes | None] | None
) -> list[Wishes | None]:
    """Those of each text, or None.

    Raises:
        UserError: there are fewer or more of them than texts.
        TypeError: one is something else.
    """
    given: list[Wishes | None] = [None] * len(texts) if wishes is None else list(wishes)
    for one in given:
        if not (one is None or isinstance(one, Wishes)):
            raise TypeError(f"expected Wishes or None, got {one!r}")
    if len(given) != len(texts):
        raise UserError(f"wishes: {len(given)} for {len(texts)} texts")
    return given


class TooLong(UserError):
    """A text has more tokens than `data.max_length`, and `data.on_long` is error.

    Attributes:
        number: of the text, counted from 0.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number

    def of(self, number: int) -> TooLong:
        """The same of the text that has another number elsewhere."""
        told = str(self).replace(f"sentence {self.number + 1}", f"sentence {number + 1}", 1)
        return TooLong(told, number)


class NoPosition(TooLong):
    """Texts that are not to be cut, such as those to be scored, have more tokens than the model has positions.

    Attributes:
        why: by number of the text what is too long; `number` is the first.
    """

    def __init__(self, why: dict[int, str]):
        self.why = why
        number = min(why)
        super().__init__(f"sentence {number + 1}: {why[number]}", number)


def _check_positions(sides: list[tuple[str, list[int]]], model: Model) -> None:
    """Raises `NoPosition` for texts that are too long; `sides` are of (name, tokens of each)."""
    most = positions_of(model) - 1  # `</s>` has one, too
    why: dict[int, str] = {}
    for number, lengths in enumerate(zip(*(counts for _, counts in sides), strict=True)):
        for (name, _), length in zip(sides, lengths, strict=True):
            if length > most:
                why[number] = (
                    f"its {name} has {length} tokens, and the model has positions for {most:.0f}; shorten it"
                )
    if why:
        raise NoPosition(why)


_UNSPACED_LANGUAGES = {"zh", "ja", "yue", "th", "lo", "km", "my"}
"""Languages written without spaces between words."""


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)), np.float32)
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole


def load(
    run_dir: str | Path,
    checkpoint: str = "best",
    device: str = "auto",
    overrides: Iterable[str] = (),
    ensemble: str | Path | Iterable[str | Path] = (),
    backend: str = "",
    backend_settings: Iterable[str] = (),
    precision: str = "fp32",
    adapters: Mapping[str, str | Path] | None = None,
) -> Translator:
    """The translator of a run.

    Args:
        run_dir: the run's folder.
        checkpoint: best, last, averaged or a checkpoint's name such as step-00001000; several,
            separated by commas, decode together as an ensemble.
        device: auto, cpu, cuda or cuda:N.
        overrides: `key=value` settings, as on the command line of `mtplug-translate`.
        ensemble: folders of further runs with the same vocabulary, which decode together with it; of each the same
            `checkpoint`, unless `RUN:CHECKPOINT` names another.
        backend: an exporter whose engine searches instead of ours, such as ctranslate2.
        backend_settings: its `key=value` settings, such as `quantization=int8`.
        precision: fp32; bf16, which holds the weights and computes in bf16 (faster on devices with
            instructions for it; translations may change a little); auto: bf16 on such devices.
        adapters: paths of adapters of the run's base, by the name under which a text may ask for one; the
            translator is then a `mtplug.adapters.SwitchingTranslator`.

    Raises:
        UserError: something of the run is missing or damaged, or needs a plugin that isn't here.
    """
    run = load_run(run_dir, overrides)
    ensemble = [ensemble] if isinstance(ensemble, (str, Path)) else list(ensemble)
    if adapters:
        from mtplug.adapters import switching

        if ensemble or backend or "," in checkpoint:
            raise UserError(
                "--adapter: an ensemble or a backend takes none; give one run and one checkpoint"
            )
        made = translator_of(run, Path(run_dir), checkpoint, device)
        return switching(made, run, adapters, precision)
    made = translator_of(run, Path(run_dir), checkpoint, device, precision)
    if backend:
        from mtplug.exporting.backend import engine_of

        if ensemble:
            raise UserError(f"--backend {backend} searches with one model, not an ensemble")
        made.engine = engine_of(
            made, run, Path(run_dir), checkpoint, device, backend, backend_settings
        )
    others = []
    for path in ensemble:
        folder, colon, own = str(path).rpartition(":")
        folder, own = (
            (folder, own) if colon and not Path(path).is_dir() else (str(path), checkpoint)
        )
        others.append((path, load(folder, own, device, precision=precision)))
    for path, other in others:
        for side in ("source_tokenizer", "target_tokenizer"):
            same_vocabulary(getattr(made.task, side), getattr(other.task, side), str(path))
    if others:
        made.model = Ensemble([made.model, *(other.model for _, other in others)]).eval()
        made.max_length = min(made.max_length, *(other.max_length for _, other in others))
    return made


def load_run(run_dir: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run; what only training needs of its plugins may be absent."""
    run_dir = Path(run_dir)
    if not is_run(run_dir):
        here = "is a file" if run_dir.is_file() else "does not exist"
        here = "is no run: it has no config.yaml" if run_dir.is_dir() else here
        raise UserError(f"{run_dir} {here}; give the folder that mtplug-train made")
    run = load_resolved(run_dir / "config.yaml", list(overrides))
    run.run_dir = str(run_dir)  # where it was made may be another place
    return run


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Models are built alike whatever program does it, and leave its random numbers alone: initial weights are drawn, and
    then overwritten."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng([]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def in_precision(model: Model, precision: str) -> None:
    """Hold a model's weights in bf16 if that is the precision, and as they are if it is fp32; in place.

    Raises:
        UserError: it is another one.
    """
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision: '{precision}' is none of fp32, bf16, auto")
    if precision == "bf16":
        for parameter in model.parameters():  # buffers, such as tables of positions, stay exact
            parameter.data = parameter.data.bfloat16()


def translator_of(
    run: RunConfig, run_dir: Path, checkpoint: str, device: str, precision: str = "fp32"
) -> Translator:
    """A translator from one of a run's checkpoints; see `load`."""
    from mtplug.training.checkpoints import Checkpoints
    from mtplug.training.finetune import model_of
    from mtplug.training.precision import pick_device, resolved

    task = run.task.build()
    task.load(run, run_dir)
    models = []
    for name in checkpoint.split(","):
        with building():
            model = model_of(run, task, whole=True)
            Checkpoints(run_dir / "checkpoints").load_model(name, model)
        models.append(model)
    model = models[0] if len(models) == 1 else Ensemble(models)
    model.to(pick_device(device)).eval()
    in_precision(model, resolved(precision, pick_device(device)))
    translator = Translator(
        model,
        task,
        run.search.build(),
        max_length=run.data.max_length,
        on_long=run.data.on_long,
        # Twice what a validation takes: a search has logits of one position at a time, not of all.
        batch_tokens=2 * run.validation.batch_tokens,
    )
    translator.lexicon = functools.partial(Lexicon.of_run, run, run_dir, task)
    return translator
