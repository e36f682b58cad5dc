"""Files of corpora, plain or packed: `.gz` and `.xz` by the standard library, `.zst` by `zstandard`.

A packed file that is cut off or damaged is always an error, also with `data.on_error: skip`: nobody knows how
much of the corpus would be missing.
"""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import importlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mtplug.errors import UserError

PACKED = (".gz", ".xz", ".zst")
BLOCK = 1 << 17
PIECE = 1 << 13  # of packed bytes, which can unpack to thousands of times as many
MARKS = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh91AY&SY": "bzip2",
    b"PK\3\4": "zip",
}
"""What packed files begin with."""


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked if its name ends as a packed one's.

    Raises:
        UserError: it is no file, or packed without such a name, or `.zst` and no library for it is installed. Reading
            raises one with file and line where the packed data is damaged.
    """
    try:
        raw = file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    with raw:
        if file.suffix not in PACKED:
            start = raw.peek(16)
            if found := [packer for mark, packer in MARKS.items() if start.startswith(mark)]:
                raise UserError(
                    f"{file} is packed ({found[0]}); unpack it, or give it packing and name of {', '.join(PACKED)}"
                )
            yield raw
            return
        if not raw.peek(1):
            raise UserError(
                f"{file}: 0 bytes, which is not a {file.suffix} file, not even an empty one"
            )
        unpacked: Any
        if file.suffix == ".gz":
            unpacked = gzip.GzipFile(fileobj=raw)
        elif file.suffix == ".xz":
            unpacked = _Streams(raw, lzma.LZMADecompressor, lzma.LZMAError, padded=True)
        else:
            unpacked = _Streams(raw, *_zstandard())
        with io.BufferedReader(_Told(unpacked, file), BLOCK) as buffered:
            yield cast(BinaryIO, buffered)


def lines(file: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, without a byte order mark.

    Raises:
        UserError: as `opened` and `without_mark`.
    """
    with opened(file) as stream:
        first = stream.readline()
        if first:
            yield without_mark(first, file)
        yield from stream


def without_mark(start: bytes, file: Path) -> bytes:
    """The first bytes of a text file, without the byte order mark of UTF-8.

    Raises:
        UserError: they begin with the mark of UTF-16, which Windows' PowerShell writes.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{file} is UTF-16; convert its text to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return start.removeprefix(codecs.BOM_UTF8)


def is_text_encoding(name: str) -> bool:
    """Whether a name is that of a codec between bytes and text; Python has codecs of other things, too, such as rot13."""
    try:
        return codecs.lookup(name)._is_text_encoding
    except LookupError:
        return False


def kind_of(file: Path) -> str:
    """The end of a file's name before that of its packing: `.po` of `de.po.gz`."""
    return file.with_suffix("").suffix if file.suffix in PACKED else file.suffix


def _below(folder: Path) -> Iterator[str]:
    """What is in a folder and in those below it, hidden ones left out; each folder once, since links may make circles."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(place, name) for name in names if not name.startswith("."))


def fitting(path: str, root: str) -> list[str]:
    """What `path` below `root` names, or else fits as a pattern, which the name of `root` is none of."""
    named = Path(root) / path
    return (
        [str(named)]
        if named.exists()
        else glob.glob(str(Path(glob.escape(root)) / path), recursive=True)
    )


def matching_files(path: str, root: str, kinds: tuple[str, ...], what: str) -> list[Path]:
    """The file `path` below `root`; or all files of these kinds, plain or packed, of a folder (to its bottom) or
    that fit a pattern, in the order of their names.

    Raises:
        UserError: no path is given, or nothing is there.
    """
    if not path:
        raise UserError(f"{what}: no path is given")
    pattern = Path(root) / path
    if pattern.is_file():
        return [pattern]
    searched = _below(pattern) if pattern.is_dir() else fitting(path, root)
    found = [p for p in map(Path, sorted(searched)) if kind_of(p) in kinds and p.is_file()]
    if not found:
        raise UserError(f"{what}: {pattern}: no {' or '.join(kinds)} file is there")
    return found


class _Told(io.RawIOBase):
    """An unpacked stream whose errors name the file and the line that was being read."""

    def __init__(self, stream: Any, file: Path):
        self.stream, self.file, self.line = stream, file, 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            # Not `read`, which loses what comes before an error.
            data = self.stream.read1(len(buffer))
        except EOFError:
            raise UserError(f"{self.file}:{self.line}: the packed file is cut off here") from None
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, _DamagedError) as error:
            raise UserError(
                f"{self.file}:{self.line}: not a whole {self.file.suffix} file: {error}"
            ) from None
        self.line += data.count(b"\n")
        buffer[: len(data)] = data
        return len(data)


class _DamagedError(Exception):
    """What a library says of data that it cannot unpack."""


class _Streams:
    """Reading of `.xz` and `.zst`, stream after stream (of Zstandard: frame after frame).

    `zstandard`'s own reader gives a cut-off frame out as a whole one, and `lzma`'s takes what follows a stream and is
    damaged for the end of the file, so streams are followed here.

    Args:
        raw: the packed bytes.
        new_stream: makes what unpacks one stream.
        error: what that raises of damaged data.
        padded: zeros may follow a stream, four or a multiple of it (the .xz file format, section 2.2).
    """

    def __init__(
        self,
        raw: BinaryIO,
        new_stream: Callable[[], Any],
        error: type[Exception],
        padded: bool = False,
    ):
        self.raw, self.new_stream, self.error, self.padded = raw, new_stream, error, padded
        self.stream: Any = None
        self.packed = self.rest = b""

    def read1(self, size: int) -> bytes:
        """At most `size` bytes, none at the end.

        Raises:
            EOFError: the data ends inside of a stream.
        """
        while not self.rest:
            between = self.stream is None or self.stream.eof
            packed = self.packed or self.raw.read(PIECE)
            if between and self.padded and self.stream is not None:
                packed = self._without_padding(packed)
            if not packed:
                if not between:
                    raise EOFError
                return b""
            if between:
                self.stream = self.new_stream()
            try:
                self.rest = self.stream.decompress(packed)
            except self.error as error:
                raise _DamagedError(error) from None
            self.packed = self.stream.unused_data if self.stream.eof else b""
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def _without_padding(self, packed: bytes) -> bytes:
        """What comes behind the zeros that `packed` begins with, at the next byte that is none."""
        zeros = 0
        while not (bare := packed.lstrip(b"\0")) and packed:
            zeros += len(packed)
            packed = self.raw.read(PIECE)
        if (zeros + len(packed) - len(bare)) % 4:
            raise _DamagedError("zeros that are no padding follow its data")
        return bare


def _zstandard() -> tuple[Any, type[Exception]]:
    """What makes a decompressor of one frame, and its error: of Python 3.14 or of the package `zstandard`."""
    with contextlib.suppress(ImportError):
        standard = importlib.import_module("compression.zstd")
        return standard.ZstdDecompressor, standard.ZstdError
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        raise UserError(".zst files need zstandard: pip install 'mtplug[zstd]'") from None
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError
