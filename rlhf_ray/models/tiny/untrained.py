"""Built-in models that recipes train from scratch: a recipe's tokenizer and random weights."""

from __future__ import annotations

import importlib
from pathlib import Path

from rlhf_ray.models.folder import Report
from rlhf_ray.models.tiny.llama import TinySizes, new_tiny_llama, save_folder
from rlhf_ray.models.tiny.tokenizer import train_tokenizer


def make(recipe: str, folder: Path, seed: int, report: Report) -> None:
    """Write the untrained model for a module of `rlhf_ray.recipes` to `folder`.

    The module's `vocabulary()` gives the texts for the tokenizer.
    """
    report("training the tokenizer")
    tokenizer = train_tokenizer(importlib.import_module(f"rlhf_ray.recipes.{recipe}").vocabulary())
    save_folder(folder, new_tiny_llama(tokenizer, seed=seed, sizes=TinySizes()), tokenizer)
