"""Files of tensors and plain values, read without running code from them.

A file of `torch.save` is a pickle, and a pickle may name any function to call. All such files of
this package are read here, by torch's restricted reader.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# The thing that a file asks for, in the words of torch 2.13 (`torch/_weights_only_unpickler.py`).
_FORBIDDEN = re.compile(
    r"(?:GLOBAL|unrecognized function|classes allowlisted via `add_safe_globals` but got) (\S.*?)"
    r"(?: was not an allowed| whose module| which belongs|$)",
    re.MULTILINE,
)


class UnsafeFileError(ValueError):
    """A file that asks for code; it was refused, and the code did not run."""


class DamagedFileError(ValueError):
    """A file that cannot be read: truncated, overwritten, or of another kind."""


def load_plain(path: Path | str, *, classes: Sequence[Any] = (), map_location: Any = "cpu") -> Any:
    """Load tensors, numbers, text, lists and dictionaries from a file of `torch.save`.

    Args:
        classes: classes of records that may be in the file as well.
        map_location: as of `torch.load`.

    Raises:
        UnsafeFileError: the file names any other class or function.
        DamagedFileError: the file is truncated or of another kind.
        OSError: the file is missing or cannot be opened.
    """
    # torch reports damage as OSError, too; whether the file can be opened is known apart from it.
    with open(path, "rb"):
        pass
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except (RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError) as error:
        raise _damage(path, str(error)) from None
    except (AttributeError, AssertionError, zipfile.BadZipFile) as error:
        raise _damage(path, str(error)) from None


def _refusal(path: Path | str, reason: str) -> ValueError:
    named = _FORBIDDEN.search(reason)
    if named is None:
        return _damage(path, "it is no file of tensors")
    return UnsafeFileError(
        f"{path} is not plain data: it asks for {named[1]}, which could run code. It was not "
        f"loaded, and nothing of it ran. This package writes no such file: use a copy that you "
        f"trust, and find out who wrote this one"
    )


def _damage(path: Path | str, reason: str) -> DamagedFileError:
    lines = reason.strip().splitlines()
    # torch advises to read without restrictions; that is no advice for a damaged file.
    cause = lines[0] if lines and "weights_only" not in lines[0] else "it is no file of tensors"
    return DamagedFileError(f"{path} cannot be read, it is truncated or overwritten: {cause}")
