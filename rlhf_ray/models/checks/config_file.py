"""The configuration of a model, with its sizes checked before a library computes with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.location import check_location, explained

CONFIG = "config.json"
_MAX_PROBLEMS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _SizeField:
    """A size that a configuration may have.

    Attributes:
        names: in different architectures.
        most: far above any model, so that a larger value is a mistake.
    """

    names: tuple[str, ...]
    most: int


_HEADS = _SizeField(names=("num_attention_heads", "n_head", "n_heads", "num_heads"), most=100_000)
_KV_HEADS = _SizeField(names=("num_key_value_heads",), most=100_000)
_HIDDEN = _SizeField(names=("hidden_size", "n_embd", "d_model"), most=1_000_000)
_HEAD_SIZE = _SizeField(names=("head_dim",), most=100_000)
_SIZES = (
    _HEADS,
    _KV_HEADS,
    _HIDDEN,
    _HEAD_SIZE,
    # The deepest models have less than 200.
    _SizeField(names=("num_hidden_layers", "n_layer", "n_layers", "num_layers"), most=2_000),
    _SizeField(names=("intermediate_size", "n_inner", "ffn_dim"), most=10_000_000),
    _SizeField(names=("vocab_size",), most=100_000_000),
    _SizeField(names=("max_position_embeddings", "n_positions", "max_seq_len"), most=10**10),
    _SizeField(names=("sliding_window",), most=10**10),
)
# Parts of a configuration that describe the language model of a composite model.
_TEXT_PARTS = ("text_config", "llm_config", "language_config")


def load_model_config(model: ModelConfig, *, key: str = "model.path") -> PreTrainedConfig:
    """Read the configuration of a folder or a hub name.

    Args:
        key: dotted name of the setting with the path.

    Raises:
        RequestError: there is none, it cannot be read, or a size in it cannot be that of a model.
    """
    check_location(model.path, key, needs_config=True)
    check_config_file(Path(model.path), key)
    with explained(model.path, key, "a model"):
        return AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)


def check_config_file(folder: Path, key: str) -> None:
    """Refuse a config.json that is no object, or with sizes that no model has.

    Nothing where there is no such file: a hub name is read by transformers.

    Raises:
        RequestError: names the file, and every field that is wrong with its value.
    """
    file = folder / CONFIG
    if not file.is_file():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{key} is {str(folder)!r}: {CONFIG} cannot be read: {error}; copy the file again"
        ) from error
    if not isinstance(content, Mapping):
        raise RequestError(
            f"{key} is {str(folder)!r}: {CONFIG} holds a {type(content).__name__}, and not an "
            f"object with model_type and sizes; copy the file again"
        )
    parts = [("", content)]
    parts += [(f"{n}.", content[n]) for n in _TEXT_PARTS if isinstance(content.get(n), Mapping)]
    problems = [text for prefix, part in parts for text in _problems(part, prefix)]
    if problems:
        raise RequestError(
            f"{key} is {str(folder)!r}: in its {CONFIG} {'; '.join(problems[:_MAX_PROBLEMS])}. "
            f"Correct the file, or copy it again"
        )


def _problems(part: Mapping[str, Any], prefix: str) -> Iterator[str]:
    wrong = [text for size in _SIZES for text in _wrong_values(part, size, prefix)]
    yield from wrong
    if not wrong:
        yield from _heads_problems(part, prefix)


def _wrong_values(part: Mapping[str, Any], size: _SizeField, prefix: str) -> Iterator[str]:
    for name in size.names:
        value = part.get(name)
        # A list: one value per layer, as some architectures have it.
        for one in value if isinstance(value, list) else (value,):
            if one is None:
                continue
            is_whole = isinstance(one, float) and one.is_integer()
            if isinstance(one, bool) or not (isinstance(one, int) or is_whole):
                yield f"{prefix}{name} is {_short(one)}, and must be a whole number"
            elif one < (0 if name == "sliding_window" else 1):
                yield f"{prefix}{name} is {_short(one)}, and must be at least 1"
            elif one > size.most:
                yield f"{prefix}{name} is {_short(one)}, and no model has more than {size.most:,}"


def _heads_problems(part: Mapping[str, Any], prefix: str) -> Iterator[str]:
    heads, hidden = _first(part, _HEADS), _first(part, _HIDDEN)
    if heads is None:
        return
    if hidden is not None and _first(part, _HEAD_SIZE) is None and hidden[1] % heads[1]:
        yield (
            f"{prefix}{hidden[0]} is {hidden[1]}, which {prefix}{heads[0]}={heads[1]} does not "
            f"divide, and there is no head_dim"
        )
    shared = _first(part, _KV_HEADS)
    if shared is not None and heads[1] % shared[1]:
        yield (
            f"{prefix}{heads[0]} is {heads[1]}, which is no multiple of "
            f"{prefix}{shared[0]}={shared[1]}"
        )


def _first(part: Mapping[str, Any], size: _SizeField) -> tuple[str, int] | None:
    """The first of the names that has one number."""
    found = ((name, part.get(name)) for name in size.names)
    return next(((name, int(v)) for name, v in found if isinstance(v, int | float)), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
