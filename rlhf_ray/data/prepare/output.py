"""Files of the output folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any


class JsonLines:
    """A file with one JSON object per line, written as they come."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, record: dict[str, Any]) -> None:
        # A lone surrogate, which UTF-8 cannot hold, is escaped.
        text = json.dumps(record, ensure_ascii=False)
        self.write_text(text.encode("utf-8", "backslashreplace").decode())

    def write_text(self, line: str) -> None:
        """A record that is text already."""
        self._file.write(line + "\n")

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
