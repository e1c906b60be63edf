"""Models whose matrices several ranks hold in slices (`tensor_parallel_size`).

transformers has a plan for many architectures, `base_model_tp_plan`: how each matrix of a layer can
be divided so that the layer computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from transformers import PreTrainedConfig

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.config_file import load_model_config

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Added by transformers where embedding and head are one weight; here both are whole.
_EMBEDDING = "embedding_rowwise"
# Sizes that the plan divides.
_DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class Style(Enum):
    """The division of a weight, by the name that transformers has for it.

    `ROWS`, `COLUMNS`: of the matrix as it is saved, outputs by inputs. `SUMMED`: whole, and its
    gradient is the sum over the ranks.
    """

    ROWS = "colwise"
    COLUMNS = "rowwise"
    SUMMED = "replicated_with_grad_allreduce"


def tensor_plan(config: PreTrainedConfig) -> dict[str, Style]:
    """The plan of a model that `slicing_problem` has nothing against: names to styles.

    Names begin at the layers, and have * in place of the layer's number.
    """
    return {name: Style(style) for name, style in _plan(config).items()}


def check_sliceable(model: ModelConfig, size: int, *, key: str, role: str) -> None:
    """Refuse a model whose matrices cannot be divided over `size` ranks.

    Args:
        key: dotted name of the setting with the path.
        role: configuration group of the role.

    Raises:
        RequestError: names the model, and what cannot be divided.
    """
    if problem := slicing_problem(load_model_config(model, key=key), size):
        raise RequestError(
            f"{role}.tensor_parallel_size={size}: {key} is {model.path!r}, {problem}"
        )


def slicing_problem(config: PreTrainedConfig, size: int) -> str:
    """A sentence if the matrices cannot be divided over `size` ranks, else an empty string."""
    fix = "set it to 1, or use zero_stage 3 and sequence_parallel_size"
    if config.get_text_config() is not config:
        return f"which is a model of several parts, of which only one is text; {fix}"
    fields = config.to_dict()
    if any(isinstance(fields.get(name), int) and fields[name] > 1 for name in _EXPERTS):
        return f"which is a mixture of experts, and those are not divided; {fix}"
    plan = _plan(config)
    if not plan:
        return f"for whose architecture transformers has no plan of slices; {fix}"
    if unknown := sorted(set(_unknown(plan))):
        return f"whose plan of slices in transformers has {', '.join(unknown)}; {fix}"
    sizes = {name: fields[name] for name in _DIVIDED if isinstance(fields.get(name), int)}
    odd = [f"{name}={number}" for name, number in sizes.items() if number % size]
    if odd:
        least = min(sizes.values(), default=1)
        fitting = [n for n in range(1, least + 1) if all(of % n == 0 for of in sizes.values())]
        return (
            f"which has {' and '.join(odd)}, and they cannot be divided; take one of "
            f"{', '.join(map(str, fitting))}"
        )
    return ""


def _plan(config: Any) -> dict[str, str]:
    plan = dict(config.base_model_tp_plan or {})
    return {name: style for name, style in plan.items() if style != _EMBEDDING}


def _unknown(plan: dict[str, str]) -> Iterator[str]:
    known = {style.value for style in Style}
    return (style for style in plan.values() if style not in known)
