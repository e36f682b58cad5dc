"""Settings that a program gives as Python values; a file's and the command line's are read by `build`."""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mtplug.errors import did_you_mean
from mtplug.registry import field_types


def replaced(config: Any, settings: dict[str, Any]) -> Any:
    """A component's configuration with some settings replaced.

    Args:
        config: an instance of its dataclass, or None for a component without settings.
        settings: values by name.

    Raises:
        ValueError: there is no such setting, its value is of a wrong type or not among the options, or the
            dataclass itself refuses it.
    """
    known = [f.name for f in dataclasses.fields(config)] if config is not None else []
    for key in settings:
        if key not in known:
            raise ValueError(f"unknown setting '{key}'{did_you_mean(key, known)}")
    made = {key: _checked(type(config), key, value) for key, value in settings.items()}
    return dataclasses.replace(config, **made)


def _checked(cls: type, key: str, value: Any) -> Any:
    wanted, fits, made = _KINDS.get(
        field_types(cls)[key], ("", lambda value: True, lambda value: value)
    )
    if not fits(value):
        raise ValueError(f"{key}: expected {wanted}, got {value!r}")
    value = made(value)
    options = cls.__dataclass_fields__[key].metadata.get("options")  # type: ignore[attr-defined]
    if options and value not in options:
        raise ValueError(f"{key}: {value!r} is none of {', '.join(options)}")
    return value


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_texts(value: Any) -> bool:
    several = isinstance(value, list | tuple | set | frozenset)
    return several and all(isinstance(text, str) for text in value)


_KINDS: dict[Any, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    bool: ("True or False", _is_bool, bool),
    int: ("a whole number", lambda x: isinstance(x, numbers.Integral) and not _is_bool(x), int),
    float: (
        "a number",
        lambda x: isinstance(x, numbers.Real) and not _is_bool(x) and x == x,
        float,
    ),
    str: ("a text", lambda x: isinstance(x, str | os.PathLike), os.fspath),
    list[str]: (
        "a list of texts",
        _is_texts,
        lambda x: sorted(x) if isinstance(x, set | frozenset) else list(x),
    ),
}
"""Of a field's type: what it is called, whether a value fits, and what is made of one that does."""
