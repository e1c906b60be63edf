"""Comparison of a folder's weights with its config.json, without reading the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.config_file import load_model_config
from rlhf_ray.models.checks.one_model import check_engine_reads, check_one_set, check_tied
from rlhf_ray.models.checks.weight_files import read_headers
from rlhf_ray.models.location import explained
from rlhf_ray.models.quiet import without_progress_bars

_MAX_NAMES = 5
_NUMBER = re.compile(r"\d+")
_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


class Use(Enum):
    """The part of a model that a role loads."""

    POLICY = "a causal language model"
    SCORES = "a language model under a scalar head"
    # vLLM also loads formats and architectures that transformers lacks.
    ENGINE = "a model of an engine"


def check_weights(model: ModelConfig, use: Use, *, key: str = "model.path") -> None:
    """Refuse a folder whose weights a worker could not load: damaged, missing, of other shapes.

    A hub name is not looked at: its files come when it is loaded.

    Args:
        key: dotted name of the setting with the path.

    Raises:
        RequestError: names the file, or the weights with their shapes.
    """
    folder = Path(model.path)
    config = load_model_config(model, key=key)
    if not folder.is_dir():
        return
    weights = _headers_of_one_model(folder, key, use)
    is_quantised = "quantization_config" in config.to_dict()
    if weights is None or is_quantised or (use is Use.ENGINE and not _is_plain(config)):
        return
    if wrong := _no_numbers_of_weights(weights):
        raise RequestError(
            f"{key} is {model.path!r}: its files hold weights as {_shown(wrong, ', ')}; weights of "
            f"a model that is not quantised are float32, bfloat16, float16 or float64"
        )
    with explained(model.path, key, use.value), without_progress_bars(), _silent():
        empty = _empty(config, use, model)
        # The library's own loading, with its renamings and ties, on tensors without content.
        load: Callable[..., Any] = type(empty).from_pretrained
        _, found = load(
            None,
            config=config,
            state_dict=weights,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    kind = type(empty).__name__
    if found["mismatched_keys"]:
        shown = [
            f"{name} is {list(there)} in the files and {list(wanted)} by config.json"
            for name, there, wanted in sorted(found["mismatched_keys"])
        ]
        raise RequestError(
            f"{key} is {model.path!r}: weights of other shapes than its config.json says "
            f"({kind}): {_shown(shown, '; ')}. Files and config.json are not of one model"
        )
    if found["missing_keys"]:
        raise RequestError(
            f"{key} is {model.path!r}, which does not hold all weights of {use.value} ({kind}): "
            f"{_shown(sorted(found['missing_keys']), ', ')} are missing and would be random. Is "
            f"the folder complete, and of this kind of model?"
        )
    if left := _left_out(found["unexpected_keys"], empty.state_dict()):
        raise RequestError(
            f"{key} is {model.path!r}: config.json has fewer layers than the files, which would "
            f"leave out {len(left):,} weights ({kind}): {_shown(left, ', ')}. Files and "
            f"config.json are not of one model"
        )
    check_tied(folder, key, weights, empty)


def _headers_of_one_model(folder: Path, key: str, use: Use) -> dict[str, Tensor] | None:
    check_one_set(folder, key)
    weights = read_headers(folder, key, any_name=use is Use.ENGINE)
    if use is Use.ENGINE:
        check_engine_reads(folder, key)
    return weights


def _left_out(unexpected: Collection[str], expected: Iterable[str]) -> list[str]:
    """Names in the files like the model's own but for a number: those of layers that it lacks.

    Other names that a model does not take are harmless: buffers, or heads that are not used. The
    library itself leaves out those of layers that it knows not to need.
    """
    forms = {_NUMBER.sub("*", name) for name in expected}

    def is_like_one(name: str) -> bool:
        form = _NUMBER.sub("*", name)
        # A backbone names its weights without the prefix that files of a whole model have.
        return form in forms or form.partition(".")[2] in forms

    return sorted(filter(is_like_one, unexpected))


def _no_numbers_of_weights(weights: Mapping[str, Tensor]) -> list[str]:
    """Other number formats of weights; buffers may have any."""
    dtypes = {each.dtype for name, each in weights.items() if name.endswith(".weight")}
    return sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - _DTYPES)


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether the folder holds a sequence classifier: a reward model."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _empty(config: PreTrainedConfig, use: Use, model: ModelConfig) -> PreTrainedModel:
    auto_class = AutoModelForCausalLM
    if use is Use.SCORES:
        auto_class = AutoModelForSequenceClassification if is_classifier(config) else AutoModel
    with torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=model.trust_remote_code)


def _is_plain(config: PreTrainedConfig) -> bool:
    """Whether transformers has the language model that the folder says it holds."""
    kinds = config.architectures or ()
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and any("CausalLM" in k for k in kinds)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the library's own report of the weights away: the result is read, not printed."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _shown(names: list[str], separator: str) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{separator.join(names[:_MAX_NAMES])}{more}"
