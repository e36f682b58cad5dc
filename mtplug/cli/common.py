"""What all commands share: plugin options, exit status, one-line errors."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import errno
import io
import os
import re
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from mtplug.errors import MtplugError, UserError, did_you_mean

_OTHER_ENDED = re.compile("(closed|reset) by peer")  # what is left of a process that has ended
INTERRUPTED = 130  # exit status after Ctrl-C
_WRONG_PATH = (
    errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """What parses the arguments of every command and subcommand; a mistake is told in one line."""

    def __init__(self, **settings):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def add_argument(self, *names, **settings):
        if settings.get("nargs") == "*":  # else argparse names it among what is missing
            settings.setdefault("default", [])
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith("?") else ";"
        self.exit(2, f"{self.prog}: {message}{stop} see {self.prog} --help\n")


def parser(name: str, description: str, epilog: str = "") -> Parser:
    """An argument parser with the options that every command has."""
    made = Parser(prog=name, description=description, epilog=epilog)
    add_common(made)
    return made


def add_common(target: argparse.ArgumentParser) -> None:
    """The options that every command, and each subcommand, has."""
    group = target.add_argument_group("plugins and errors")
    group.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="load a file as a plugin"
    )
    group.add_argument(
        "--block", action="append", default=[], metavar="NAME", help="leave a plugin out"
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def first_process() -> bool:
    """Whether this is the one of those that `torchrun` started that reports."""
    return os.environ.get("RANK", "0") == "0"


def report(text: str) -> None:
    """A line of progress, on standard error."""
    if first_process():
        print(text, file=sys.stderr, flush=True)


def run(
    made: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], int | None],
    argv: list[str] | None,
) -> int:
    """Parse, run, and turn errors into one line and an exit status.

    0 done; 2 the user's input is wrong; 1 anything else; 128 + signal when one ended it.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # what it cannot write is escaped, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stderr(_Lasting(sys.stderr)):  # type: ignore[type-var]
        status = _run(made, body, argv)
    if (
        status == INTERRUPTED
    ):  # all is saved and told: a second Ctrl-C would only show the innards of Python's exit
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return status


class _Lasting:
    """A stream that nobody needs to read: what it cannot write is lost, and the work goes on.

    A training's log may go to a program that ends, to a terminal that is closed, or to a full disk.
    """

    def __init__(self, stream: Any):
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _run(
    made: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], int | None],
    argv: list[str] | None,
) -> int:
    args = _parsed(made, argv)
    debug = args.debug
    try:
        return body(args) or 0
    except KeyboardInterrupt:
        _tell(f"{made.prog}: stopped")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; nothing to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        # safetensors tells of it by an error of its own
        if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(
            error
        ):
            name = getattr(error, "filename", None)
            where = f" (writing {name})" if name else ""
            _tell(
                f"{made.prog}: no space left on the disk{where}; what was saved stays: free some "
                "and run the same command again"
            )
            return 1
        if isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename:
            _tell(f"{made.prog}: {error.filename}: {error.strerror}")
            return 2
        status = error.exit_status if isinstance(error, MtplugError) else 0
        who = made.prog
        if status and not first_process():
            if not getattr(error, "of_one_process", False):
                return status  # the first one tells
            who += f": process {os.environ['RANK']}"
        if not status and "RANK" in os.environ and _OTHER_ENDED.search(str(error)):
            _tell(f"{who}: another process has ended; what it said tells why")
            return 1
        text = " ".join(str(error).split()) if status else f"{type(error).__name__}: {error}"
        hint = "" if status else f"  ({_place(error)}--debug shows the traceback)"
        _tell(f"{who}: {text.splitlines()[0] if text else text}{hint}")
        return status or 1


def _tell(line: str) -> None:
    """On standard error; names and texts of files may hold characters by which a terminal is told what to do."""
    hidden = ("Cc", "Cs")
    shown = (ascii(c)[1:-1] if unicodedata.category(c) in hidden else c for c in line)
    print("".join(shown), file=sys.stderr)


def _place(error: BaseException) -> str:
    """Which plugin an unforeseen error comes from, and where; empty if none takes part in it."""
    from mtplug.plugins import host

    with contextlib.suppress(Exception):  # the error itself is to be told in any case
        for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
            plugin = host().of_module(frame.f_globals.get("__name__", ""))
            if plugin is not None:
                return f"in plugin {plugin}, {Path(frame.f_code.co_filename).name}:{line}; "
    return ""


def _parsed(made: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Settings may stand before and after options."""
    if not made._subparsers:
        args, rest = made.parse_known_intermixed_args(argv)
        if rest:
            _refuse_unknown(made, rest)
        return args
    # The options of every command belong to subcommands, and may be typed before these.
    argv = list(sys.argv[1:] if argv is None else argv)
    for _ in argv:
        option = argv[0].partition("=")[0]
        if option not in ("--plugin", "--block", "--debug"):
            break
        size = 1 + (argv[0] in ("--plugin", "--block"))
        argv = [*argv[size:], *argv[:size]]
    # argparse does not mix them below subcommands, where it leaves settings after an option over.
    args, rest = made.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(x.startswith("-") for x in rest)):
        (subcommands,) = made._subparsers._group_actions
        _refuse_unknown(subcommands.choices[args.command], rest)  # type: ignore[index,call-overload]
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _refuse_unknown(made: argparse.ArgumentParser, arguments: list[str]) -> NoReturn:
    """Tell what is no argument of a command, with the option that it is nearest to."""
    options = [a.partition("=")[0] for a in arguments if a.startswith("-")]
    known = list(made._option_string_actions)
    near = [n for o in options for n in difflib.get_close_matches(o, known, 1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    made.error(f"unrecognized arguments: {' '.join(arguments)}{hint}")


def configure(args: argparse.Namespace) -> None:
    """Make the plugin host that the options ask for.

    Raises:
        UserError: there is nothing of a name that is to be blocked, or a plugin file fails.
    """
    from mtplug.plugins import configure

    names = [name for option in args.block for name in option.split(",") if name]
    host = configure(names, args.plugin)
    known = {name for p in host.plugins.values() for name in (p.name, p.id, p.distribution)}
    for name in names:
        if name not in known:
            tail = did_you_mean(name, known) or "; mtplug-plugins list names them all"
            raise UserError(f"--block {name}: there is no such plugin{tail}")


def refuse_overwriting(
    option: str, output: Path, inputs: Iterable[tuple[str, Path | int | None]]
) -> None:
    """Check, before `output` is opened and so emptied, that it is none of the inputs.

    Args:
        option: that names the output.
        inputs: what each is called, and its path or file descriptor; None: it is not used.

    Raises:
        UserError: it is one of them, if by another name.
    """
    if not output.is_file():  # both may be /dev/null
        return
    for name, given in inputs:
        with contextlib.suppress(OSError):  # that it is not there is told by who reads it
            if given is not None and os.path.samefile(output, given):
                raise UserError(f"{option} {output}: that is {name}; write to another file")


def tell_failed() -> None:
    """Name the plugins on standard error whose components a list lacks, because they did not load."""
    from mtplug.plugins import host

    for plugin in host().inspect():
        if plugin.state == "failed":
            print(
                f"not listed: what plugin {plugin} has, which failed: {plugin.error}",
                file=sys.stderr,
            )
