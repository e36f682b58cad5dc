"""A model with what it needs to translate text."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mtplug.architectures.base import Model, why_unfit
from mtplug.config.given import replaced
from mtplug.data.batching import Batch, collate, token_batches
from mtplug.data.corpora import one_line
from mtplug.data.scripts import UNSPACED_LANGUAGES, primary
from mtplug.data.separated import SEPARATOR, Separated
from mtplug.data.splitting import split, truncated
from mtplug.data.tokenizers import Tokenizer, refusals
from mtplug.errors import UserError
from mtplug.exporting.base import Engine
from mtplug.nn.modes import evaluating
from mtplug.nn.positions import positions_of
from mtplug.search.answers import Answers
from mtplug.search.base import Hypothesis, Request, SearchStrategy, check_hypotheses
from mtplug.search.scoring import forced_scores
from mtplug.search.shortlist import Lexicon, Shortlisted
from mtplug.search.wishes import Policy, Speller, Wishes
from mtplug.tasks.base import Task
from mtplug.translator.attention import attend
from mtplug.translator.inputs import (
    TooLong,
    Unreadable,
    check_as_many,
    check_positions,
    checked_texts,
    checked_wishes,
)
from mtplug.translator.result import Translation
from mtplug.translator.windows import in_windows

_BREAKS = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
"""Characters that a line of output cannot contain."""
_BLANKS = re.compile(f"[ \t{_BREAKS.pattern[1:]}")
"""Characters of which a run becomes one space where blanks mean nothing; U+00A0 and U+3000 are text."""
_COUNTING = threading.Lock()


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
        source_lang: which language texts are in, where the run's model is told; empty: what the task says, or the only one that
            the run learnt to translate into `target_lang`.
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
        self.target_lang = self.source_lang = ""
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
                return in_windows(self, written, given, documents, progress, *how)
            return self.alone(written, given, progress, *how)

    def alone(
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
        texts = [self.address(text) for text in written]
        policy = Policy(strategy.config)
        pieces = self._pieces(texts)
        if self.task.continues:  # each text is the beginning of what is written, given no source
            if any(w and w.prefix.strip() for w in given):
                raise UserError(
                    "prefix: this run continues its text, which is the prefix; write that in its place"
                )
            pieces = [[[]] for _ in texts]
            given = [replace(w or Wishes(), prefix=t) for w, t in zip(given, written, strict=True)]
        plain = [self.task.source_tokenizer.plain(text) for text in texts]
        asked = [policy.wishes(text, own) for text, own in zip(plain, given, strict=True)]
        requests = None
        if any(asked):
            due = [
                self._of_pieces(policy, wish, own, parts)
                for wish, own, parts in zip(asked, given, pieces, strict=True)
            ]
            requests = self._requests(texts, due, strategy, model)
        found = self._search(model, strategy, pieces, requests, progress)
        if requests is not None:
            self._avoid_other_spellings(model, strategy, pieces, asked, requests, found)
        joiners = [" " if self.spaced(text) else "" for text in texts]
        readable = [self._readable(*both) for both in zip(found, joiners, strict=True)]
        if isinstance(self.task.target_tokenizer, Separated):  # one sentence stays one
            for text, row, joiner in zip(texts, readable, joiners, strict=True):
                for translation in row if SEPARATOR not in text else ():
                    sentences = map(str.strip, translation.text.split(SEPARATOR))
                    translation.text = self.clean(joiner.join(sentences))
        for wish, row in zip(asked, readable, strict=True):
            for translation in row if wish else ():
                translation.unmet = wish.unmet(translation.text)
        readable = strategy.rank(texts, readable)
        if attention:
            attend(self, model, texts, pieces, readable)
        self._note_long(texts, pieces, readable)
        self._note_unfit(self.task.source_tokenizer, self._inputs(texts), readable)
        return readable

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
        texts = [self.address(s) for s in sources]
        pairs = list(
            zip(
                self.encoded(texts),
                self.task.target_tokenizer.encode([one_line(t) for t in targets]),
                strict=True,
            )
        )
        model = self._model(self._strategy({}))
        if cut and (most := positions_of(model)) < math.inf:
            pairs = [(s[: int(most) - 1], t[: int(most) - 1]) for s, t in pairs]
        lengths = [("source", [len(s) for s, _ in pairs]), ("target", [len(t) for _, t in pairs])]
        check_positions(lengths, model)
        results: list[Translation | None] = [None] * len(pairs)
        tokens = self.task.target_tokenizer.tokens
        with self._undisturbed():
            for batch in self.batches(pairs, 1):
                for i, scores in zip(batch.ids.tolist(), forced_scores(model, batch), strict=True):
                    mean, ids = sum(scores) / len(scores), list(pairs[i][1])
                    results[i] = Translation(
                        targets[i].strip(), mean, tokens(ids), scores, True, parts=[ids]
                    )
            scored = [r for r in results if r is not None]
            if attention:
                attend(self, model, texts, [[source] for source, _ in pairs], [[t] for t in scored])
        does = {"split": "splits", "error": "refuses"}.get(self.on_long, "cuts")
        for (source, _), translation in zip(pairs, scored, strict=True):
            if len(source) > self.max_length:
                told = f"longer than {self.max_length} tokens, which translation {does}, and scored whole"
                translation.notes.append(f"{told}: {len(source)}")
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

    def spaced(self, text: str) -> bool:
        """Does the language that an addressed text is translated into put spaces between words?"""
        return primary(self.task.written_lang(text)) not in UNSPACED_LANGUAGES

    def _of_pieces(
        self, policy: Policy, whole: Wishes, own: Wishes | None, pieces: list[list[int]]
    ) -> list[Wishes]:
        """What each piece of a text is to hold: a term where it stands, all else that is required the first; what is
        forbidden, none may."""
        if len(pieces) < 2:
            return [whole]
        source = self.task.source_tokenizer
        terms = [policy.terms(source.plain(text)) for text in source.decode(pieces)]
        first, *others = [[f for f in whole.required if f in found] for found in terms]
        elsewhere = [f for found in others for f in found if own is None or f not in own.required]
        first += [f for f in whole.required if f not in first and f not in elsewhere]
        rest = [Wishes("", found, whole.forbidden) for found in others]
        return [Wishes(whole.prefix, first, whole.forbidden), *rest]

    def _requests(
        self, texts: list[str], due: list[list[Wishes]], strategy: SearchStrategy, model: Model
    ) -> list[list[Request]]:
        """What is wished of each piece, in ids; `UserError` if the strategy takes no wishes, or the model no such prefix."""
        if "requests" not in inspect.signature(strategy.__call__).parameters:
            beam = model.autoregressive and not self.task.aligned
            instead = "; use search.name=beam" if beam else ""
            instead = "; translate without --backend" if self.engine else instead
            raise UserError(
                f"search: {type(strategy).__name__} takes no prefix, required or forbidden "
                f"phrases{instead}"
            )
        requests = [
            [self._speller.request(wish, self.spaced(text)) for wish in wishes]
            for text, wishes in zip(texts, due, strict=True)
        ]
        check_positions([("prefix", [len(first.prefix) for first, *_ in requests])], model)
        return requests

    def _search(
        self,
        model: Model,
        strategy: SearchStrategy,
        pieces: list[list[list[int]]],
        requests: list[list[Request]] | None,
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
        for batch in self.batches(flat, strategy.width):
            of = None
            if requests is not None:
                of = [requests[n][k] for n, k in (owners[i] for i in batch.ids)]
            source = (batch.source_tokens, batch.source_lengths)
            if short:
                ids = self._lexicon.candidates(batch.source_tokens, short, of)
                results = Shortlisted(model, ids).search(strategy, *source, of)
            else:
                results = strategy(model, *source, *([] if of is None else [of]))  # type: ignore[call-arg]
            check_hypotheses(strategy, results, len(batch))
            for i, hypotheses in zip(batch.ids, results, strict=True):
                n, k = owners[i]
                found[n][k] = hypotheses
            done += len(batch)
            progress(done)
        return found

    def batches(self, pairs: list[tuple[list[int], list[int]]], width: int) -> Iterator[Batch]:
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
        requests: list[list[Request]],
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
                if any(ids not in requests[n][0].forbidden for ids in spelled):
                    requests[n] = [
                        replace(old, forbidden=old.forbidden + spelled) for old in requests[n]
                    ]
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
            count = len(self.encoded([text])[0])
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
            note = tokenizer.unfit([text]).removesuffix(": line 1")  # it knows of no other
            for translation in row:
                if note and note not in translation.notes:
                    translation.notes.append(note)

    def address(self, text: str) -> str:
        """A text on one line, with what tells the model which language to write."""
        told = (self.target_lang, self.source_lang) if self.source_lang else (self.target_lang,)
        return self.task.address(one_line(text), *told)

    def policy(self, search: dict[str, Any]) -> Policy:
        """What is wished of every sentence, with settings of a call that were searched with."""
        config: Any = getattr(self.search, "config", None)
        return Policy(replaced(config, search) if search else config)

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
        encoded = self.encoded(texts)
        return [self._fit(ids, number) if ids else [] for number, ids in enumerate(encoded)]

    def encoded(self, texts: list[str]) -> list[list[int]]:
        """The source ids of each addressed text, however many.

        Raises:
            Unreadable: the tokenizer does not take some of them.
        """
        tokenizer, inputs = self.task.source_tokenizer, self._inputs(texts)
        try:
            return tokenizer.encode(inputs)
        except UserError:
            if why := refusals(tokenizer, inputs):
                raise Unreadable(why) from None
            raise

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
        return [truncated(self.task.source_tokenizer, ids, limit, self.task.heads)]

    def _readable(self, parts: list[list[Hypothesis]], joiner: str) -> list[Translation]:
        if not parts:
            return [Translation("", 0.0, [], [], True)]
        tokenizer = self.task.target_tokenizer
        result = []
        for row in self.search.of_pieces(parts):
            text = joiner.join(tokenizer.decode([h.tokens for h in row]))
            translation = Translation(
                self.clean(text),
                sum(h.score for h in row) / len(row),
                [t for h in row for t in tokenizer.tokens(h.tokens)],
                [s for h in row for s in h.token_scores],
                all(h.finished for h in row),
                parts=[h.tokens for h in row],
            )
            result.append(translation)
        return result

    def clean(self, text: str) -> str:
        """A text that a tokenizer made, on one line."""
        return (_BREAKS if self._keeps_blanks else _BLANKS).sub(" ", text).strip()
