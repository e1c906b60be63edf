"""Imports a script of launch/, which is no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"launch_{name}", LAUNCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
