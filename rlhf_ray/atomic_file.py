"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write the text in UTF-8 beside `path` and put it in its place; a kill leaves the old file.

    A lone surrogate becomes its escape, which JSON reads back.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)
