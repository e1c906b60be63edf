"""The built-in model `customer_service`: the tokenizer of the task and random weights."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.models.folder import Report
from rlhf_ray.models.tiny_llama import TinySizes, new_tiny_llama, save_folder
from rlhf_ray.models.tiny_tokenizer import train_tokenizer
from rlhf_ray.tasks.customer_service import vocabulary


def make(folder: Path, seed: int, report: Report) -> None:
    """Write the untrained model to `folder`."""
    report("training the tokenizer")
    tokenizer = train_tokenizer(vocabulary())
    save_folder(folder, new_tiny_llama(tokenizer, seed=seed, sizes=TinySizes()), tokenizer)
