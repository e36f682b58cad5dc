"""Imported before fairseq 0.12, makes it importable by a current Python and NumPy."""

import dataclasses

import numpy


def _dataclass(cls=None, **options):
    """Makes instances hashable, without which Python refuses them as defaults since 3.11; fairseq and its
    hydra have such defaults."""
    if cls is None:
        return lambda cls: _dataclass(cls, **options)
    made = _original(cls, **options)
    if made.__hash__ is None:
        made.__hash__ = object.__hash__
    return made


_original, dataclasses.dataclass = dataclasses.dataclass, _dataclass
for name in (float, int, bool, object):
    setattr(numpy, name.__name__, name)  # NumPy has dropped these names since
