"""JSON lines files of the output folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """Writer of a file with one JSON object per line; use it with `contextlib.closing`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, record: dict[str, Any]) -> None:
        # A lone surrogate, which UTF-8 cannot hold, is escaped.
        text = json.dumps(record, ensure_ascii=False)
        self.write_text(text.encode("utf-8", "backslashreplace").decode())

    def write_text(self, line: str) -> None:
        """Write a record that is already JSON text."""
        self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()
