"""Tokens at which generation stops, in the generation settings of a model's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.data.template_time import time_line
from rlhf_ray.data.tokens.turn_ends import TurnEnd, engine_ends
from rlhf_ray.models.location import by_name, choose_template

FILE_NAME = "generation_config.json"
_KEY = "eos_token_id"


def read_ends(model: ModelConfig) -> tuple[int, ...]:
    """Tokens at which generation stops by the settings of `model.path`.

    Without `generation_config.json`, those of `config.json`, as in transformers and vLLM.
    """
    return ends_of(_read_settings(model))


def ends_of(settings: GenerationConfig) -> tuple[int, ...]:
    """The ends that generation settings name: none, one, or a list of them."""
    return _as_tuple(settings.to_dict().get(_KEY))


def joined(*several: Iterable[int]) -> tuple[int, ...]:
    """All ends, each once, in the order in which they first appear."""
    return tuple(dict.fromkeys(end for ends in several for end in ends))


def engine_tokenizer(
    path: str, *, trust_remote_code: bool, chat_template: str | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of an engine, with the template that it renders chats with.

    Args:
        chat_template: a file, the name of one of the tokenizer's templates, or the template itself,
            as in vLLM; None for that of the tokenizer.

    Raises:
        RequestError: there is no such file or name.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        # vLLM takes a text with one of these signs for a template.
        is_text = any(sign in chat_template for sign in "{}\n") and chat_template not in by_name(
            tokenizer.chat_template
        )
        tokenizer.chat_template = (
            chat_template if is_text else choose_template(tokenizer.chat_template, chat_template)
        )
    return tokenizer


def missing_ends(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ends of a turn in the chat template that the settings of `model.path` do not name.

    vLLM stops by itself at the tokenizer's end of text and at the ends of the settings.
    """
    known = (*read_ends(model), tokenizer.eos_token_id)
    return tuple(end for end in engine_ends(tokenizer) if end not in known)


def add_ends(folder: Path, ends: Sequence[int]) -> None:
    """Add ends to the generation settings of a saved model; those that it has stay.

    An adapter in the folder gets a copy of the settings: it is used with a base model that may
    not name the ends.
    """
    file = folder / FILE_NAME
    settings = _read_json(file) or {_KEY: (_read_json(folder / "config.json") or {}).get(_KEY)}
    known = _as_tuple(settings.get(_KEY))
    if found := joined(known, ends):
        settings[_KEY] = found[0] if len(found) == 1 else list(found)
    if found != known or not file.is_file():
        # With this mark transformers may go back to the end in config.json.
        settings.pop("_from_model_config", None)
        write_atomically(file, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for adapter in folder.glob("*/adapter_config.json"):
        shutil.copyfile(file, adapter.parent / FILE_NAME)


def adapter_ends(folder: Path) -> tuple[int, ...]:
    """The ends that `add_ends` wrote into the folder of an adapter; none without them."""
    return _as_tuple((_read_json(folder / FILE_NAME) or {}).get(_KEY))


def write_served_settings(model: ModelConfig, ends: Sequence[int], folder: Path) -> None:
    """Write the generation settings of `model.path` with more ends, for a server to read."""
    settings = _read_settings(model).to_diff_dict()
    folder.mkdir(parents=True, exist_ok=True)
    settings[_KEY] = list(joined(_as_tuple(settings.get(_KEY)), ends))
    (folder / FILE_NAME).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def added_line(
    ends: Sequence[TurnEnd], model: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Words on the learnt ends that the settings of `model.path` lack; None if they lack none."""
    known = read_ends(model)
    lacking = [end for end in ends if end.token_id not in known]
    if not lacking:
        return None
    names = ", ".join(f"{end.text!r} ({end.count})" for end in lacking)
    named = ", ".join(repr(tokenizer.decode([end])) for end in known) or "none"
    return (
        f"what is learnt ends with {names}, where the generation settings of {model.path} stop at "
        f"{named}; the settings of the result name all of these"
    )


def template_lines(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words on the time that the chat template writes, and on ends that only it names."""
    lines = (time_line(tokenizer), stops_line(model, tokenizer))
    return [line for line in lines if line is not None]


def stops_line(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Words on ends of the chat template that the settings of `model.path` lack; None if none."""
    missing = missing_ends(model, tokenizer)
    if not missing:
        return None
    names = ", ".join(repr(tokenizer.decode([end])) for end in missing)
    return (
        f"the chat template ends turns with {names}, which the generation settings of {model.path} "
        f"do not name; the engines stop there too"
    )


def _read_settings(model: ModelConfig) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(model.path)
    except OSError:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        return GenerationConfig.from_model_config(config)


def _read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _as_tuple(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
