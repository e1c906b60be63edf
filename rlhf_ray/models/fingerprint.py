"""Identity of the weights behind a path, without reading them."""

from __future__ import annotations

from pathlib import Path


def model_facts(path: str) -> list[str]:
    """The path and, for a folder, name, size and modification time of every file.

    Equal facts mean equal weights as far as a file system can tell. A hub name gives only itself.
    """
    folder = Path(path)
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    facts = [(file.relative_to(folder), file.stat()) for file in files]
    return [path, *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)]
