"""mtplug-serve: a server that translates."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mtplug.cli import common

if TYPE_CHECKING:
    from mtplug.config.schema import RunConfig
    from mtplug.translator import Translator

EPILOG = """\
examples:
  mtplug-serve runs/de-en --port 8080
  mtplug-serve runs/de-en runs/en-de search.beam=4
  mtplug-serve german=runs/a czech=runs/b --precision auto
  curl http://127.0.0.1:8080/translate -d '{"text": "Ein Hund rennt."}'"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-serve", "Translate texts that come over HTTP.", EPILOG)
    made.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN",
        help="folders of runs; requests choose by NAME, the folder's name where none is given; "
        "search.key=value among them sets a setting of all",
    )  # fmt: skip
    made.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    made.add_argument("--port", type=int, default=8080, help="0: a free one, which is told (%(default)s)")  # fmt: skip
    made.add_argument("--checkpoint", default="best", help="best, last, averaged or step-N; several, with commas, are an ensemble")  # fmt: skip
    made.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH", help="for requests that name it")  # fmt: skip
    made.add_argument("--target-lang", default="", metavar="CODE", help="where a request says none")
    made.add_argument("--source-lang", default="", metavar="CODE", help="where a request says none")
    made.add_argument("--backend", default="", metavar="NAME", help="such as ctranslate2")
    made.add_argument("--quantization", help="of --backend's model, such as int8")
    made.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--linger", type=float, default=5, metavar="MS",
        help="milliseconds that a request waits for others to be translated with it (%(default)s)",
    )  # fmt: skip
    made.add_argument("--batch", type=int, default=64, help="texts of requests that are translated together (%(default)s)")  # fmt: skip
    made.add_argument("--queue", type=int, default=1024, help="texts that may wait for a run; further ones get status 503 (%(default)s)")  # fmt: skip
    made.add_argument("--max-body", type=int, default=2**20, metavar="BYTES", help="of a request (%(default)s)")  # fmt: skip
    made.add_argument("--max-beam", type=int, default=32, metavar="N", help="that a request may ask for (%(default)s)")  # fmt: skip
    made.add_argument("--log", action="store_true", help="tell of each request on standard error, without its text")  # fmt: skip
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.errors import UserError
    from mtplug_server.api import Api
    from mtplug_server.server import Server

    runs, settings = _sorted_out(args.runs)
    _check(args, runs)
    server = Server((args.host, args.port), args.max_body, args.log)
    with _telling_port(args):  # before models are loaded, which takes its time
        server.server_bind()
    models = {}
    for name, path in runs.items():
        try:
            models[name] = _served(name, path, settings, args)
        except UserError as error:
            if len(runs) == 1:
                raise
            raise UserError(f"{name}: {error}") from error
    server.routes = Api(models, args.max_beam).routes()
    with _telling_port(args):
        server.server_activate()
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, _stop)
        host = f"[{args.host}]" if ":" in args.host else args.host
        told = f"http://{host}:{server.server_port} serves {', '.join(runs)}; Ctrl-C stops it"
        print(f"mtplug-serve: {told}", file=sys.stderr, flush=True)
        while True:
            time.sleep(3600)
    except _Stopped as stopped:
        server.finish()
        print("mtplug-serve: stopped", file=sys.stderr)
        return 128 + stopped.signum


@contextlib.contextmanager
def _telling_port(args: argparse.Namespace) -> Iterator[None]:
    from mtplug.errors import UserError

    try:
        yield
    except OSError as error:
        raise UserError(f"--host {args.host} --port {args.port}: {error.strerror}") from None


class _Stopped(BaseException):
    """A signal that ends the server."""

    def __init__(self, signum: int):
        self.signum = signum


def _stop(signum: int, frame: Any) -> NoReturn:
    # A second one does not wait for what has begun.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise _Stopped(signum)


def _sorted_out(given: list[str]) -> tuple[dict[str, Path], list[str]]:
    """Runs by name, and settings such as search.beam=4."""
    from mtplug.errors import UserError

    runs: dict[str, Path] = {}
    settings = []
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or Path(one).exists():
            name, path = Path(one).resolve().name, one
        elif re.match(r"\w+\.", name):
            settings.append(one)
            continue
        if not name or name in runs:
            raise UserError(f"{one}: give each run a name of its own: NAME={path}")
        runs[name] = Path(path)
    return runs, settings


def _check(args: argparse.Namespace, runs: dict[str, Path]) -> None:
    from mtplug.errors import UserError

    if not runs:
        raise UserError("no run is given, only settings")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: expected a number from 0 to {2**16 - 1}")
    if args.linger < 0 or not args.linger < 60_000:
        raise UserError(f"--linger {args.linger:g}: expected milliseconds, from 0 to a minute")
    for option in ("batch", "queue", "max_body", "max_beam"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: must be at least 1")  # fmt: skip
    if args.quantization is not None and not args.backend:
        raise UserError("--quantization needs a --backend, such as ctranslate2")
    if args.adapter and len(runs) > 1:
        raise UserError("--adapter: adapters are of one base; serve that run alone")


def _served(name: str, path: Path, settings: list[str], args: argparse.Namespace) -> Any:
    from mtplug.errors import UserError
    from mtplug.translator import load, load_run
    from mtplug.translator.attention import why_not
    from mtplug_server.api import Model
    from mtplug_server.batching import Worker

    adapters = dict(one.partition("=")[::2] for one in args.adapter)
    for one in args.adapter:
        if not all(one.partition("=")) or len(adapters) < len(args.adapter):
            raise UserError(f"--adapter {one}: expected NAME=PATH, with a name of its own")
    quantization = [f"quantization={args.quantization}"] if args.quantization is not None else []
    translator = load(
        path,
        args.checkpoint,
        args.device,
        settings,
        backend=args.backend,
        backend_settings=quantization,
        precision=args.precision,
        adapters=adapters,
    )
    translator.target_lang, translator.source_lang = args.target_lang, args.source_lang
    if args.target_lang or (args.source_lang and not translator.task.tags):
        translator.address("?")  # what it does not write or read is told at once
    translator.translate([""])  # so are settings of the search that do not work
    worker = Worker(translator, args.linger / 1000, args.batch, args.queue, args.debug)
    about = _about(load_run(path, settings), translator, args)
    languages = args.target_lang, args.source_lang
    return Model(worker, {"name": name, **about}, *languages, why_not(translator))


def _about(run: RunConfig, translator: Translator, args: argparse.Namespace) -> dict[str, Any]:
    config: Any = translator.search.config
    search = {k: getattr(config, k) for k in ("beam", "nbest") if hasattr(config, k)}
    return {
        "source_lang": getattr(run.task.config, "source_lang", ""),
        "target_lang": translator.task.target_lang,
        "languages": list(translator.task.tags),
        "task": run.task.name,
        "architecture": run.architecture.name,
        "checkpoint": args.checkpoint,
        "precision": args.precision,
        "search": {} if translator.task.aligned else {"name": run.search.name, **search},
        "adapters": [n for n in getattr(translator, "adapters", ()) if n],
    }


if __name__ == "__main__":
    sys.exit(main())
