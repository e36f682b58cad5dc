"""Requests that wait at the same time are translated together: one thread for each model."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtplug.errors import UserError
from mtplug.search import Wishes
from mtplug.translator import Translation, Translator


@dataclass(frozen=True)
class Settings:
    """What requests must have in common to be translated in one call.

    Attributes:
        target_lang, source_lang: as of a `Translator`.
        alignment: whether words are aligned.
        search: settings of the search for this call, such as `(("beam", 4),)`.
    """

    target_lang: str = ""
    source_lang: str = ""
    alignment: bool = False
    search: tuple[tuple[str, Any], ...] = ()


@dataclass
class Job:
    """One request.

    Attributes:
        texts: what it wants to have translated, at least one.
        wishes: what each translation must hold.
        adapter: name of the adapter that translates, of a translator that has some.
        found: gets the translations of each text, or the error.
        arrived: on the monotonic clock.
    """

    texts: list[str]
    settings: Settings = Settings()
    wishes: Wishes | None = None
    adapter: str = ""
    found: Future[list[list[Translation]]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Full(Exception):
    """As many texts wait as may."""


class Worker:
    """Translates jobs, in the order of their arrival, in a thread of its own; nobody else uses the translator.

    Args:
        translator: whose languages are set for each call.
        linger: seconds; how long the first of a batch waits for others.
        batch: texts of a call, at most; a job that has more is translated by itself.
        room: texts that may wait.
        debug: show the traceback of an error that is not the user's.
    """

    def __init__(
        self,
        translator: Translator,
        linger: float = 0.005,
        batch: int = 64,
        room: int = 1024,
        debug: bool = False,
    ):
        self.translator, self.linger, self.batch, self.room = translator, linger, batch, room
        self.debug = debug
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return sum(len(job.texts) for job in self._jobs)

    def submit(self, job: Job) -> Future[list[list[Translation]]]:
        """Let a job wait for its turn.

        Raises:
            Full: there is no room for it.
        """
        with self._changed:
            if self.waiting + len(job.texts) > self.room:
                raise Full
            self._jobs.append(job)
            self._changed.notify()
        return job.found

    def _work(self) -> None:
        while True:
            self._answer(self._next())

    def _answer(self, jobs: list[Job]) -> None:
        try:
            return self._translate(jobs)
        except Exception as error:
            if len(jobs) == 1:
                return self._fail(jobs[0], error)
        # One of them may be at fault, or all together too much for the memory; the error, whose frames hold tensors, is gone.
        for job in jobs:
            self._answer([job])

    def _next(self) -> list[Job]:
        """The first job and those that go with it."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)
            until = self._jobs[0].arrived + self.linger
            while True:
                jobs, full = self._together()
                left = until - time.monotonic()
                if full or left <= 0:
                    break
                self._changed.wait(left)
            chosen = set(map(id, jobs))
            self._jobs = [job for job in self._jobs if id(job) not in chosen]
            return jobs

    def _together(self) -> tuple[list[Job], bool]:
        """What may be translated with the first job, and whether nothing can join it any more."""
        first = self._jobs[0]
        jobs, room = [first], self.batch - len(first.texts)
        for job in self._jobs[1:]:
            if job.settings == first.settings:
                if len(job.texts) > room:
                    return jobs, True  # none overtakes it
                jobs.append(job)
                room -= len(job.texts)
        return jobs, room <= 0

    def _translate(self, jobs: list[Job]) -> None:
        settings, translator = jobs[0].settings, self.translator
        texts: list[str] = []
        wishes: list[Wishes | None] = []
        adapters: list[str] = []
        starts = []
        for job in jobs:
            # Where neighbours are translated together, an empty text parts documents, and so requests.
            own = ["", *job.texts] if texts and translator.window > 1 else job.texts
            texts += own
            wishes += [job.wishes] * len(own)
            adapters += [job.adapter] * len(own)
            starts.append(len(texts) - len(job.texts))
        translator.target_lang, translator.source_lang = settings.target_lang, settings.source_lang
        rows = translator.nbest(
            texts,
            wishes=wishes if any(wishes) else None,
            attention=settings.alignment,
            token_scores=False,
            **({"adapters": adapters} if any(adapters) else {}),
            **dict(settings.search),
        )
        for job, start in zip(jobs, starts, strict=True):
            job.found.set_result(rows[start : start + len(job.texts)])

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, UserError):
            # Its message may hold the text of the request, which is not to be kept in a log.
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(at.filename).name}:{at.lineno}; --debug shows the traceback"
            print(f"mtplug-serve: {type(error).__name__} ({where})", file=sys.stderr)
            if self.debug:
                traceback.print_exception(error, file=sys.stderr)
        job.found.set_exception(error.with_traceback(None))
