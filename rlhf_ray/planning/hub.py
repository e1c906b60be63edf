"""The `config.json` of a model: of a folder, of the hub's cache, or of the hub itself.

A plan needs this file alone. Nothing waits long: a hub that is not reached within some seconds
leaves the sizes unknown, which the plan says.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.builtin import BUILTIN_MODELS, builtin_folder, is_builtin
from rlhf_ray.models.location import BUILTIN_PREFIX, is_hub_name
from rlhf_ray.planning.shape import local_model

_FILE = "config.json"
_DEADLINE_S = 5.0
_OFF = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def planned_model(path: str, *, seed: int) -> Mapping[str, Any] | None:
    """The values of a model's configuration, also of one on the hub; None if it is not known.

    Args:
        seed: of the run, for a built-in model.

    Raises:
        RequestError: the hub says that there is no such model, or that it may not be read.
    """
    if is_builtin(path):
        known = path.removeprefix(BUILTIN_PREFIX) in BUILTIN_MODELS
        return local_model(str(builtin_folder(path, seed=seed))) if known else None
    if not is_hub_name(path):
        return local_model(path)
    cached = _cached(path)
    if cached is not None:
        return _read(cached)
    if any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in _OFF):
        return None
    return _fetched(path)


def _cached(name: str) -> Path | None:
    """The file in the hub's cache, newest first, as the hub's client lays it out."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
    folder = Path(cache).expanduser() / f"models--{name.replace('/', '--')}" / "snapshots"
    try:
        found = sorted(folder.glob(f"*/{_FILE}"), key=lambda file: file.stat().st_mtime)
    except OSError:
        return None
    return found[-1] if found else None


def _read(file: Path) -> Mapping[str, Any] | None:
    return local_model(str(file.parent))


@functools.lru_cache(maxsize=8)
def _fetched(name: str) -> Mapping[str, Any] | None:
    """The file of the hub; None if the hub is not reached within the deadline."""
    results: list[Mapping[str, Any] | RequestError] = []
    thread = threading.Thread(target=_fetch, args=(name, results), daemon=True)
    thread.start()
    thread.join(_DEADLINE_S)
    result = results[0] if results else None
    if isinstance(result, RequestError):
        raise result
    return result


def _fetch(name: str, results: list[Mapping[str, Any] | RequestError]) -> None:
    try:
        # Half a second of import, only where it is needed.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            GatedRepoError,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        return
    try:
        file = hf_hub_download(name, _FILE, etag_timeout=_DEADLINE_S)
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        results.append(
            RequestError(
                f"model.path={name}: the hub has no such model, or does not show it to this user "
                f"({type(error).__name__}); correct the name, or set HF_TOKEN"
            )
        )
    except RemoteEntryNotFoundError:
        results.append(RequestError(f"model.path={name}: the hub's folder has no {_FILE}"))
    except Exception:  # noqa: BLE001 - a network that is not there may raise anything
        return
    else:
        if isinstance(values, dict):
            results.append(values)
