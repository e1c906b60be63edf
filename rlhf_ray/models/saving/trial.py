"""The saving of a model on trial, without its weights, before it is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.location import explained
from rlhf_ray.models.quiet import without_progress_bars
from rlhf_ray.models.saving.generation_settings import mend_generation_settings

_GENERATION = "generation_config.json"


def read_generation_settings(empty: PreTrainedModel, model: ModelConfig) -> list[str]:
    """Give a model without weights the generation settings of its folder, mended.

    Returns:
        A line for every mend.

    Raises:
        RequestError: the file is there and cannot be read. The library would silently take
            settings of its own instead.
    """
    file = Path(model.path) / _GENERATION
    if empty.can_generate() and file.is_file() and not model.random_weights:
        with explained(model.path, "model.path", f"its {_GENERATION}"):
            empty.generation_config = GenerationConfig.from_pretrained(model.path)
    return mend_generation_settings(empty)


def try_saving(
    empty: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    generation: GenerationConfig | None = None,
) -> None:
    """Save a model without its weights, and its tokenizer, to a folder that is then removed.

    Args:
        generation: settings in the place of the model's.

    Raises:
        RequestError: it fails, and would fail after the training as well.
    """
    if generation is not None:
        empty.generation_config = generation
    with tempfile.TemporaryDirectory(prefix="rlhf_ray_trial_") as folder, without_progress_bars():
        for what, save in (
            ("configuration", lambda: empty.save_pretrained(folder, state_dict={})),
            ("tokenizer", lambda: tokenizer.save_pretrained(folder)),
        ):
            try:
                save()
            except Exception as error:
                reason = " ".join(str(error).split())[:600]
                raise RequestError(
                    f"model.path is {path!r}: a model that starts from it could not be saved, "
                    f"because of its {what}: {type(error).__name__}: {reason} Correct the files "
                    f"of the folder"
                ) from error
