"""Checks of a model's path, and errors about it that users understand."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rlhf_ray.config.errors import RequestError

BUILTIN_PREFIX = "builtin:"

# owner/name or name, as on the hub.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_location(path: str, key: str, *, needs_config: bool) -> None:
    """Refuse a path that can be neither a model folder nor a hub name.

    Args:
        key: dotted name of the setting with the path.
        needs_config: the folder must hold a config.json.

    Raises:
        RequestError: names the path, what is wrong with it and the fix.
    """
    if not path:
        raise RequestError(f"{key} is not set; give a folder, a hub name, or {BUILTIN_PREFIX}NAME")
    folder = Path(path)
    if folder.is_dir():
        _check_folder(folder, key, needs_config=needs_config)
    elif folder.exists():
        raise RequestError(f"{key} is {path!r}, a file; a model is the folder around it")
    elif path.startswith(BUILTIN_PREFIX):
        raise RequestError(
            f"{key} is {path!r}: a built-in model has to be made before it is loaded; "
            "rlhf_ray.models.builtin.resolve_model_path does so and returns its folder"
        )
    elif not _HUB_NAME.fullmatch(path):
        raise RequestError(
            f"{key} is {path!r}: no such folder, and not a hub name (owner/name); correct the path"
        )


def is_hub_name(path: str) -> bool:
    """Whether a path is no place on this machine, and can be the name of a model on the hub."""
    return not Path(path).expanduser().exists() and _HUB_NAME.fullmatch(path) is not None


def _check_folder(folder: Path, key: str, *, needs_config: bool) -> None:
    if not needs_config or (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise RequestError(
            f"{key} is {str(folder)!r}, an adapter without its base model; merge the two first "
            "(peft: merge_and_unload), and name the merged folder"
        )
    inside = sorted(child.name for child in folder.iterdir())
    candidates = [name for name in inside if (folder / name / "config.json").is_file()]
    hint = f"did you mean {folder / candidates[0]}?" if candidates else f"it holds {inside[:8]}"
    raise RequestError(f"{key} is {str(folder)!r}, a folder without config.json; {hint}")


@contextmanager
def explained(path: str, key: str, what: str) -> Iterator[None]:
    """Turn errors of libraries about the files of a model into a message about `key`."""
    try:
        yield
    except RequestError:
        raise
    # Files that no one has checked make libraries raise any kind of error: a TypeError for text
    # in the place of a number, a ZeroDivisionError for no heads, an UnpicklingError.
    except Exception as error:
        reason = _words(error)
        where = "" if Path(path).is_dir() else " (no such folder here, so taken for a hub name)"
        raise RequestError(f"{key} is {path!r}{where}: cannot load {what}: {reason}") from error


def _words(error: Exception) -> str:
    """The error on one line; with its kind, where the text alone would say nothing."""
    if isinstance(error, pickle.UnpicklingError):
        # torch's own words advise to set weights_only=False, which would run the code.
        return (
            "its weights are a pickle file that is damaged or holds more than weights, which is "
            "never run here; ask for the weights as safetensors"
        )
    text = " ".join(str(error).split())[:600]
    is_plain = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
    return text if is_plain and text else f"{type(error).__name__}: {text}"


def read_chat_template(path: str) -> str:
    """The text of a file with a Jinja chat template.

    Raises:
        RequestError: the file is missing, empty, or not text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"model.chat_template is {path!r}: cannot be read: {error}") from error
    if not text.strip():
        raise RequestError(
            f"model.chat_template is {path!r}: the file is empty; name a file with a Jinja template"
        )
    return text
