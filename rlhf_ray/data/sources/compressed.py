"""Files that may be compressed, read as a stream."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from rlhf_ray.data.rows import DataError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def bare_name(path: Path) -> Path:
    """The path without the suffix of a compression: rows.jsonl of rows.jsonl.gz."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; decompress it on the way if its suffix says so.

    Raises:
        DataError: the compressed data are damaged, cut short, or of another kind.
    """
    try:
        with _stream(path) as file:
            yield file
    # `OSError` of the three libraries and of Arrow; a missing file is found before.
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if path.suffix.lower() not in COMPRESSED:
            raise
        raise DataError(
            f"{path} cannot be decompressed as {path.suffix}: {error}; is it complete, and is its "
            "suffix right?"
        ) from error


def _stream(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast("BinaryIO", gzip.open(path, "rb"))
        case ".bz2":
            return cast("BinaryIO", bz2.open(path, "rb"))
        case ".xz":
            return cast("BinaryIO", lzma.open(path, "rb"))
        case ".zst":
            # Python 3.11 has no Zstandard. Imported here, because other files do not need it.
            import pyarrow

            stream = pyarrow.input_stream(str(path), compression="zstd")
            return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", stream)))
        case _:
            return path.open("rb")
