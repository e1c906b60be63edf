"""Loading of a whole model, or of an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.finite import check_finite
from rlhf_ray.models.location import check_location, explained
from rlhf_ray.models.quiet import without_progress_bars

ADAPTER_CONFIG = "adapter_config.json"


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
        merged = PeftModel.from_pretrained(whole, model.path).merge_and_unload()
    if not isinstance(merged, PreTrainedModel):
        raise RequestError(
            f"model.path is {model.path!r}: its adapter does not give a language model"
        )
    check_finite(merged, model.path)
    return merged
