"""Checks of a model's path, and errors about it that users understand."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig

BUILTIN_PREFIX = "builtin:"

# owner/name or name, as on the hub.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# The name of one of a model's chat templates, and not of a file.
_TEMPLATE_NAME = re.compile(r"[\w-]+")


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


def choose_template(own: Any, chosen: str) -> str:
    """The text of the chosen template: one with that name of the tokenizer's own, or a file.

    Args:
        own: the tokenizer's templates: None, one text, or several by name in either form of a
            tokenizer_config.json.
        chosen: `model.chat_template`.

    Raises:
        RequestError: see `read_chat_template`; names the tokenizer's templates, if it has several.
    """
    named = by_name(own)
    if chosen and chosen in named:
        return named[chosen]
    try:
        return read_chat_template(chosen)
    except RequestError as error:
        if "" in named or not named:
            raise
        raise RequestError(
            f"{error}; the tokenizer's own templates are {', '.join(map(repr, named))}"
        ) from error


def by_name(own: Any) -> dict[str, str]:
    """The templates of a tokenizer by name; a single one has the name ""."""
    if isinstance(own, list):
        own = {one["name"]: one["template"] for one in own}
    if own is None or isinstance(own, dict):
        return own or {}
    return {"": own}


def folder_templates(folder: Path) -> Any:
    """The templates in the files of a folder, as a tokenizer has them that is read from it.

    Raises:
        OSError, ValueError: a file cannot be read.
    """
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    found: Any = None
    if file.is_file():
        found = file.read_text(encoding="utf-8")
    elif settings.is_file():
        found = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not more:
        return found
    named = {one.stem: one.read_text(encoding="utf-8") for one in more}
    own = by_name(found)
    return {**({"default": own[""]} if "" in own else own), **named}


def check_template_place(model: ModelConfig) -> None:
    """Refuse a chosen template that is no file, and no name in the files of the tokenizer.

    A name is not looked up in a folder that is not there, or on the hub: the run does so.

    Raises:
        RequestError: see `choose_template`.
    """
    chosen = model.chat_template
    if chosen is None:
        return
    source = model.tokenizer_path or model.path
    folder = Path(source).expanduser()
    if folder.is_dir():
        with explained(source, "model.path", "a chat template"):
            choose_template(folder_templates(folder), chosen)
    elif Path(chosen).is_file() or not _TEMPLATE_NAME.fullmatch(chosen):
        read_chat_template(chosen)


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
