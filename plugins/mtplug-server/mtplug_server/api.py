"""What requests may ask, and what they are answered."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from mtplug.cli.lines import parse
from mtplug.errors import UserError, did_you_mean
from mtplug.translator import Translation
from mtplug_server.batching import Full, Job, Settings, Worker
from mtplug_server.server import Refused, Routes

_PER_TEXT = ("prefix", "required", "forbidden", "adapter")
_KINDS = {"target_lang": str, "source_lang": str, "alignment": bool, "beam": int, "nbest": int}
_KEYS = ("text", "run", *_KINDS, *_PER_TEXT)
_NAMES = {str: "a text", bool: "true or false", int: "a whole number"}


@dataclass
class Model:
    """One run that is served.

    Attributes:
        worker: translates.
        about: what `/models` tells of it.
        target_lang, source_lang: where a request says none.
        no_alignment: why its words cannot be aligned; empty if they can.
    """

    worker: Worker
    about: dict[str, Any]
    target_lang: str = ""
    source_lang: str = ""
    no_alignment: str = ""


class Api:
    """Answers requests.

    Args:
        models: by the name that requests choose.
        max_beam: largest `beam` and `nbest` that a request may ask for.
    """

    def __init__(self, models: dict[str, Model], max_beam: int = 32):
        self.models, self.max_beam = models, max_beam

    def routes(self) -> Routes:
        return {
            "/translate": ("POST", self.translate),
            "/models": ("GET", lambda body: {"models": [m.about for m in self.models.values()]}),
            "/health": ("GET", self.health),
            "/translator/translate": ("POST", self.opennmt),
        }

    def health(self, body: bytes) -> Any:
        return {"status": "ok", "waiting": sum(m.worker.waiting for m in self.models.values())}

    def translate(self, body: bytes) -> Any:
        asked = _read(body)
        if not isinstance(asked, dict):
            raise Refused(400, 'expected {"text": "…"} or {"text": ["…", …]}')
        for key in asked:
            if key not in _KEYS:
                raise Refused(400, f"unknown key '{key[:40]}'{did_you_mean(key[:40], _KEYS)}")
        asked = {key: value for key, value in asked.items() if value is not None}
        name, texts = self._name(asked.get("run")), asked.get("text")
        rows = self._translated(name, [texts] if isinstance(texts, str) else texts, asked)
        made = [_entry(row, "nbest" in asked) for row in rows]
        return {"run": name, "translations": made}

    def opennmt(self, body: bytes) -> Any:
        """As OpenNMT-py's server answers: for each rank a list of the translations of all texts."""
        asked = _read(body)
        if not (isinstance(asked, list) and asked and all(isinstance(one, dict) for one in asked)):
            raise Refused(400, 'expected [{"src": "…"}, …]')
        # Its numbers of models are names here; where there is one model, they say nothing.
        ids = {str(one.get("id", 0)) if len(self.models) > 1 else None for one in asked}
        if len(ids) > 1:
            raise Refused(400, "id: all texts of a request are for one model")
        sources = [one.get("src") for one in asked]
        rows = self._translated(self._name(*ids), sources, {}, "src")
        ranks, pairs = max(map(len, rows)), list(zip(sources, rows, strict=True))
        return [[_opennmt(text, row, rank, ranks) for text, row in pairs] for rank in range(ranks)]

    def _name(self, name: Any) -> str:
        if name is None and len(self.models) == 1:
            return next(iter(self.models))
        if not isinstance(name, str) or name not in self.models:
            raise Refused(400, f"run: choose one of {', '.join(self.models)}")
        return name

    def _translated(
        self, name: str, texts: Any, asked: dict[str, Any], key: str = "text"
    ) -> list[list[Translation]]:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused(400, f"{key}: expected a text or a list of texts")
        model = self.models[name]
        if len(texts) > model.worker.room:
            raise Refused(413, f"{key}: more than {model.worker.room:,} texts; send fewer at once")
        job = self._job(model, texts, asked)
        if not texts:
            return []
        try:
            return model.worker.submit(job).result()
        except Full:
            raise Refused(503, "too many texts are waiting", **{"Retry-After": "1"}) from None
        except UserError as error:
            # The toolkit speaks of the options of its commands.
            told = str(error).replace("--target-lang", "target_lang")
            raise Refused(400, told.replace("--source-lang", "source_lang")) from None
        except Exception as error:
            raise Refused(500, f"the translation failed: {type(error).__name__}") from None

    def _job(self, model: Model, texts: list[str], asked: dict[str, Any]) -> Job:
        for key, kind in _KINDS.items():
            if key in asked and type(asked[key]) is not kind:
                raise Refused(400, f"{key}: expected {_NAMES[kind]}")
        search = {key: asked[key] for key in ("beam", "nbest") if key in asked}
        for key, value in search.items():
            if not 1 <= value <= self.max_beam:
                raise Refused(400, f"{key} {value}: expected 1 to {self.max_beam}")
        # Read by the code that reads the lines of mtplug-translate, so that they mean the same.
        line = {"source": "", **{key: asked[key] for key in _PER_TEXT if key in asked}}
        read = parse(json.dumps(line).encode(), 1, "jsonl")
        if read.adapter and not read.error:
            check = getattr(model.worker.translator, "check", "no adapter '{}' is loaded".format)
            read.error = check(read.adapter)
        if read.error:
            raise Refused(400, read.error)
        if asked.get("alignment") and model.no_alignment:
            raise Refused(400, f"alignment: {model.no_alignment}")
        settings = Settings(
            asked.get("target_lang") or model.target_lang,
            asked.get("source_lang") or model.source_lang,
            asked.get("alignment", False),
            tuple(search.items()),
        )
        return Job(texts, settings, read.wishes, read.adapter)


def _read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise Refused(400, "no JSON: nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"no JSON: {error}") from None


def _entry(row: list[Translation], several: bool) -> dict[str, Any]:
    """The translations of a text, in the words of `mtplug-translate --format jsonl`."""
    notes = {"notes": row[0].notes} if row[0].notes else {}
    nbest = {"nbest": [_fields(t) for t in row]} if several or len(row) > 1 else {}
    return {**_fields(row[0]), **notes, **nbest}


def _fields(t: Translation) -> dict[str, Any]:
    found = {"text": t.text, "score": _number(t.score), "finished": t.finished}
    if t.word_alignment is not None:
        found["word_alignment"] = t.word_alignment
    if t.unmet:
        found["unmet"] = t.unmet
    return found


def _opennmt(text: str, row: list[Translation], rank: int, ranks: int) -> dict[str, Any]:
    found = row[
        min(rank, len(row) - 1)
    ]  # each list has all texts; an empty one has one translation
    score = _number(found.score)
    return {"src": text, "tgt": found.text, "n_best": ranks, "pred_score": score}


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return round(value, 6) if math.isfinite(value) else None
