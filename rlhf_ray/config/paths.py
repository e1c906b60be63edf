"""Paths of local files and folders on the command line: what no path can be, and absolute paths."""

from __future__ import annotations

import errno
import re
from pathlib import Path

# Control characters, and those that turn the direction of writing: a terminal obeys them, and the
# name that is shown is another one. Surrogates are bytes that are not UTF-8.
_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def unshowable(text: str) -> str | None:
    """The problem with a name that has a character which cannot be shown, or None."""
    found = _UNSHOWABLE.search(text)
    if found is None:
        return None
    return f"it has the character {found[0]!a}, which cannot be shown; use a name without it"


def path_problem(path: str) -> str | None:
    """The problem with a text that names no file on any machine, or cannot be looked at here.

    A path that is simply missing is no problem: it may be a name on a hub.
    """
    if problem := unshowable(path):
        return problem
    try:
        Path(path).expanduser().exists()
    except RuntimeError:
        user = Path(path).parts[0]
        return f"there is no user {user[1:]!r} whose folder {user} would be; write the whole path"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "the path, or a name in it, is longer than the file system allows; shorten it"
        return f"it cannot be looked at: {error.strerror}; name a path that you can read"
    return None


def absolute(path: str) -> str:
    """The path from the root, with `~` replaced; call `path_problem` first."""
    return str(Path(path).expanduser().absolute())


def absolute_if_found(path: str) -> str:
    """Make an existing path absolute; hub names, import paths and missing files stay.

    A path that begins with `~` is never a hub name.
    """
    if not path:
        return path
    is_home = path.startswith("~")
    return absolute(path) if is_home or Path(path).exists() else path
