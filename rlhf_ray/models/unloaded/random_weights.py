"""Random weights of a causal language model, made a part at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.config_file import load_model_config
from rlhf_ray.models.loading import DTYPES, empty_policy
from rlhf_ray.models.location import explained
from rlhf_ray.models.saving.generation_settings import mend_generation_settings
from rlhf_ray.models.unloaded.parts import RealTensors, model_parts


def new_policy(model: ModelConfig, *, dtype: str, seed: int) -> PreTrainedModel:
    """Make a causal language model with random weights, on the CPU.

    The weights depend only on configuration, dtype and seed, so that all ranks have the same ones.

    Args:
        dtype: "float32" or "bfloat16".

    Raises:
        RequestError: the configuration cannot be read, or is of no such model.
    """
    made, weights = unmade_policy(model, dtype=dtype, seed=seed)
    for part in model_parts(made):
        weights.fill(part)
    return made


def unmade_policy(
    model: ModelConfig, *, dtype: str, seed: int
) -> tuple[PreTrainedModel, RandomWeights]:
    """The model of `new_policy` before it has weights, and the maker of its weights.

    No part needs to be whole in memory with the others. A model with code of its own
    (`model.trust_remote_code`) is the exception: its constructor may compute tables, so that it is
    made whole, and nothing is left to fill.
    """
    made = empty_policy(model, dtype=dtype)
    if made.is_custom_code():
        made = _constructed(model, dtype=dtype, seed=seed)
    mend_generation_settings(made)
    return made, RandomWeights(made, seed=seed)


class RandomWeights:
    """The random weights of a model, for its parts in the order of `model_parts`.

    Each part draws as its architecture defines it, and continues with the random numbers after
    those of the part before. So the weights are the same whether a part is kept, or sharded
    before the next one is made.

    Args:
        model: without weights; values are drawn on the CPU.
    """

    def __init__(self, model: PreTrainedModel, *, seed: int) -> None:
        self._owners = dict(_owners(model, model))
        self._real = RealTensors(torch.device("cpu"))
        self._random_state = torch.Generator().manual_seed(seed).get_state()

    @torch.no_grad()
    def fill(self, part: Sequence[nn.Module]) -> None:
        """Make the weights of a part; nothing where there are weights already."""
        made = self._real.replace_in(part)
        if not made:
            return
        uses = Counter(id(tensor) for module in part for tensor in _own_tensors(module))
        with torch.random.fork_rng(devices=[]), guard_torch_init_functions():
            torch.set_rng_state(self._random_state)
            for module in part:
                if module not in self._owners:
                    continue
                self._owners[module]._init_weights(module)
                # A tied head is not drawn over the embedding. This is the mark of transformers.
                for tensor in _own_tensors(module):
                    if uses[id(tensor)] > 1:
                        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
            self._random_state = torch.get_rng_state()


def _own_tensors(module: nn.Module) -> list[Tensor]:
    tables = (module._parameters, module._buffers)
    return [tensor for table in tables for tensor in table.values() if tensor is not None]


def _owners(
    module: nn.Module, owner: PreTrainedModel
) -> Iterator[tuple[nn.Module, PreTrainedModel]]:
    """Each module with the model whose class knows its random weights: the nearest around it."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    yield module, owner
    for child in module.children():
        yield from _owners(child, owner)


def _constructed(model: ModelConfig, *, dtype: str, seed: int) -> PreTrainedModel:
    config = load_model_config(model)
    with (
        explained(model.path, "model.path", "a causal language model"),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            config,
            dtype=DTYPES[dtype],
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
        )
