"""Loading of a whole model, or of an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, load_peft_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.finite import check_finite
from rlhf_ray.models.location import check_location, explained
from rlhf_ray.models.quiet import without_progress_bars

ADAPTER_CONFIG = "adapter_config.json"
_MAX_NAMES = 3


def adapter_base(folder: str) -> str | None:
    """Path or name of the base model of the adapter in the folder; None without an adapter."""
    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        return None
    with explained(folder, "model.path", "an adapter"):
        return PeftConfig.from_pretrained(folder).base_model_name_or_path


def load_merged(model: ModelConfig, *, dtype: str) -> PreTrainedModel:
    """Load a causal language model on the CPU; merge an adapter into its base.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto" for the dtype of the files.

    Raises:
        RequestError: the model, or the base of the adapter, cannot be read or is not finite.
    """
    base = adapter_base(model.path)
    path, key = (model.path, "model.path") if base is None else (base, "the base of model.path")
    check_location(path, key, needs_config=True)
    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    with without_progress_bars(), explained(path, key, "a causal language model"):
        whole = AutoModelForCausalLM.from_pretrained(
            path, dtype=wanted, trust_remote_code=model.trust_remote_code
        )
    check_finite(whole, path, key=key)
    if base is None:
        return whole
    with explained(model.path, "model.path", "an adapter"):
        adapted = PeftModel.from_pretrained(whole, model.path)
        _check_taken(adapted, model.path, base)
        merged = adapted.merge_and_unload()
    if not isinstance(merged, PreTrainedModel):
        raise RequestError(
            f"model.path is {model.path!r}: its adapter does not give a language model"
        )
    check_finite(merged, model.path)
    return merged


def _check_taken(adapted: PeftModel, path: str, base: str) -> None:
    """Refuse an adapter of which peft has not taken all weights: it only warns, or says nothing.

    Raises:
        RequestError: names weights that the files lack, or that the base has no place for.
    """
    there = set(load_peft_weights(path, device="cpu"))
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    missing = sorted(wanted - there)
    # Layers that are saved whole are in the model under the names that they have in the files.
    left_out = sorted(there - wanted - set(adapted.state_dict()))
    if missing or left_out:
        what, names = ("lack", missing) if missing else ("have more than fits:", left_out)
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        raise RequestError(
            f"model.path is {path!r}: the files of the adapter {what} "
            f"{', '.join(names[:_MAX_NAMES])}{more}. It is not whole, or not an adapter for {base}"
        )
