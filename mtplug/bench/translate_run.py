"""Suite `translate_run`: a trained run translates a test set, beside toolkits that are given its weights.

Ours go from text to text as `mtplug-translate` does, subwords included; the others are given the ids of subwords, in
batches of about one length, and answer in ids. What required phrases cost is told beside beam search without them.
"""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mtplug
from mtplug.bench.peers.process import Worker
from mtplug.bench.peers.start import started
from mtplug.bench.rounds import (
    ONE,
    WHOLE,
    Side,
    Spent,
    bars_of_beams,
    conditions_now,
    precisions_of,
    ratio_text,
    ratios,
    rows_of_beam,
    take_turns,
    timed,
)
from mtplug.data.corpora import one_line
from mtplug.data.tokenizers import EOS
from mtplug.errors import UserError
from mtplug.evaluation.files import parallel_lines
from mtplug.exporting.marian import MarianExporter, MarianFormat
from mtplug.registry import require_range
from mtplug.search.wishes import Wishes
from mtplug.translator import Translator


@dataclass
class TranslateRunSuiteConfig:
    """A run on a test set: sentences per CPU second, BLEU; with --peers beside toolkits with its weights."""

    run: str = ""
    """the run's folder; peers take what `mtplug-export --format marian` can write"""
    input: str = ""
    """text to translate, one sentence a line"""
    reference: str = ""
    """its translations, for BLEU; empty: none"""
    checkpoint: str = "best"
    shortlist: int = 50
    """`search.shortlist` of the rows with a shortlist"""
    beams: list[int] = field(default_factory=lambda: [5, 1])
    required: list[int] = field(default_factory=lambda: [1, 3])
    """so many phrases of two words of each reference are required in further rows of beam search"""
    batch: int = 64
    """sentences of a peer's batch"""
    rounds: int = 3
    """counted rounds, after one that is not"""
    peers: list[str] = field(default_factory=list)
    """toolkits to measure with, as in suite train; --peers stands for peers=[all]"""
    peers_dir: str = ""
    """folder of their environments; empty: a folder of the user's cache"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "beams", "required", "batch", "rounds")
        require_range(self, 0, math.inf, "shortlist")


class TranslateRunSuite:
    def __init__(self, config: TranslateRunSuiteConfig):
        self.config = config
        self.left_out: list[str] = []
        self.torch: list[str] = []
        self.model = ""
        self.unmet: dict[str, int] = {}
        self.references: list[list[str]] = []

    def run(self) -> list[dict[str, Any]]:
        """Rows with sentences per CPU second of each side, and how many times the best peer's they are.

        Raises:
            UserError: run or input is not given, or the reference has another number of lines.
        """
        c = self.config
        if not c.run or not Path(c.input).is_file():
            raise UserError("suite translate_run needs run=FOLDER and input=FILE")
        files = [c.input, c.reference] if c.reference else [c.input]
        lines, *self.references = parallel_lines([Path(file) for file in files])
        precisions = precisions_of(torch.device("cpu"), self.left_out)
        ours = {p: mtplug.load(c.run, c.checkpoint, "cpu", precision=p) for p in precisions}
        plain = ours["fp32"]
        size = sum(p.numel() for p in plain.model.parameters())
        self.model = f"{type(plain.model).__name__}, {size:,} parameters"
        rows = []
        with contextlib.ExitStack() as ends:
            folder = ends.enter_context(tempfile.TemporaryDirectory())
            workers: list[Worker] = []
            if c.peers:
                try:
                    workers = ends.enter_context(self._started(plain, lines, Path(folder)))
                except UserError as error:  # another model than theirs
                    self.left_out.append(f"peers: {error}")
            self.torch = sorted({worker.torch for worker in workers})
            for beam in c.beams:
                answers: dict[str, list[str]] = {}
                self.unmet = {}
                sides: dict[tuple[str, str], Side] = {}
                for precision, translator in ours.items():
                    for short in (0, c.shortlist):
                        label = f"mtplug {precision}" + (", shortlist" if short else "")
                        sides |= self._ours(label, translator, lines, answers, beam, short)
                    for worker in workers:
                        label = f"{worker.label} {precision}"
                        sides |= self._asked(label, worker, plain, lines, answers, precision, beam)
                    for count in c.required if beam > 1 and c.reference else ():
                        wishes = self._wishes(count)
                        label = f"mtplug {precision}, {count} required"
                        sides |= self._ours(label, translator, lines, answers, beam, 0, wishes)
                spent = take_turns(sides, c.rounds, self.left_out)
                rows += self._rows(spent, answers, len(lines), beam)
        return rows

    def _started(
        self, translator: Translator, lines: list[str], folder: Path
    ) -> contextlib.AbstractContextManager[list[Worker]]:
        MarianExporter(MarianFormat()).export(translator, folder)
        pieces = translator.task.source_tokenizer.encode([one_line(s) for s in lines])
        settings = {
            "suite": "translate_run", "weights": str(folder), "batch": self.config.batch,
            "source": [[*ids[: translator.max_length], EOS] for ids in pieces],
        }  # fmt: skip
        return started(self.config.peers, self.config.peers_dir, settings, self.left_out)

    def _ours(
        self,
        label: str,
        translator: Translator,
        lines: list[str],
        answers: dict[str, list[str]],
        beam: int,
        short: int,
        wishes: list[Wishes] | None = None,
    ) -> dict[tuple[str, str], Side]:
        def turn(texts: list[str]) -> Callable[[], None]:
            def work() -> None:
                wished = wishes and wishes[: len(texts)]
                found = translator.nbest(
                    texts, wishes=wished, token_scores=False, beam=beam, shortlist=short
                )
                answers.setdefault(label, [best[0].text for best in found])
                if wishes:
                    self.unmet.setdefault(label, sum(bool(best[0].unmet) for best in found))

            return work

        return {
            (label, WHOLE): lambda: timed(turn(lines)),
            (label, ONE): lambda: timed(turn(lines[:1])),
        }

    def _wishes(self, count: int) -> list[Wishes]:
        """For each sentence `count` phrases of two words that follow each other in its reference, drawn with seed 1."""
        draw = random.Random(1)
        made = []
        for line in self.references[0]:
            words = line.rstrip(".").split()
            starts = [draw.randrange(max(len(words) - 1, 1)) for _ in range(count)]
            phrases = dict.fromkeys(" ".join(words[n : n + 2]).strip(",") for n in starts)
            made.append(Wishes(required=[[phrase] for phrase in phrases if phrase]))
        return made

    def _asked(
        self,
        label: str,
        worker: Worker,
        translator: Translator,
        lines: list[str],
        answers: dict[str, list[str]],
        precision: str,
        beam: int,
    ) -> dict[tuple[str, str], Side]:
        def turn(sentences: int) -> Spent:
            answer = worker.ask(precision=precision, beam=beam, sentences=sentences)
            if label not in answers:
                ids = [tokens[:-1] for tokens in answer["result"]]
                answers[label] = translator.task.target_tokenizer.decode(ids)
            return Spent(answer["cpu"], answer["wall"])

        return {(label, WHOLE): lambda: turn(len(lines)), (label, ONE): lambda: turn(1)}

    def _rows(
        self,
        spent: dict[tuple[str, str], list[Spent]],
        answers: dict[str, list[str]],
        sentences: int,
        beam: int,
    ) -> list[dict[str, Any]]:
        rows = rows_of_beam(spent, sentences, beam, ("fp32", "bf16"))
        for row in rows:
            own = answers[row["side"]]
            same = sum(a == b for a, b in zip(own, answers["mtplug fp32"], strict=True))
            row["as mtplug fp32"] = f"{100 * same / max(sentences, 1):.1f} %"
            if self.config.reference:
                row["BLEU"] = self._bleu(own)
            if (name := row["side"]) in self.unmet:
                row["unmet"] = self.unmet[name]
                wished, free = (
                    [s.cpu for s in spent[side, WHOLE]] for side in (name, name.partition(",")[0])
                )
                row["of the time of none"] = ratio_text(ratios(wished, free))
        return rows

    def _bleu(self, answer: list[str]) -> float:
        from sacrebleu.metrics import BLEU

        return round(BLEU().corpus_score(answer, self.references).score, 2)

    def conditions(self) -> dict[str, Any]:
        asked = self.torch or "none asked for"
        return {"model": self.model, "torch of the peers": asked, **conditions_now()}

    def plot(self, rows: list[dict[str, Any]], file: Path) -> None:
        """Sentences per CPU second as bars, one panel for each beam."""
        bars_of_beams(rows, file)


@mtplug.hookimpl
def register_benchmarks(register):
    register("translate_run", TranslateRunSuite, TranslateRunSuiteConfig)
