"""Errors meant for the person at the keyboard: one line, what is wrong, where, what would be right."""

import difflib
from collections.abc import Iterable


class MtplugError(Exception):
    """Something went wrong that is explained by its message alone. Commands exit with status 1."""

    exit_status = 1
    of_one_process = False
    """Whether, of several processes, only this one has the error, and so reports it; else the first one reports for all."""


class UserError(MtplugError):
    """The user's input is wrong. Commands print the message as one line and exit with status 2."""

    exit_status = 2


class NoComponent(UserError):
    """There is no usable component of a name that a configuration gives.

    Attributes:
        of: its kind and name, where these are known.
    """

    of: tuple[str, str] | None = None


class StopRun(MtplugError):
    """Raised in a lifecycle hook by a plugin that wants the run to end at once; any other exception there is
    reported, and the run goes on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest right name, or all of them where few."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    if known and len(known) <= 20:
        return f"; known: {', '.join(known)}"
    return ""
