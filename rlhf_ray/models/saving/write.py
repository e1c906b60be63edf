"""Writing of a trained model: a failure in a small file does not cost the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import save_torch_state_dict
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.models.quiet import without_progress_bars

if TYPE_CHECKING:
    from torch import Tensor

# In the folder of a model that could not be written as a whole.
PROBLEMS_FILE = "SAVE_PROBLEMS.txt"


def write_folder(model: Any, tokenizer: Any, folder: Path, state: dict[str, Tensor]) -> None:
    """Write weights, configuration, generation settings and tokenizer.

    If another file than the weights fails, the weights are written all the same, and the failures
    to `SAVE_PROBLEMS.txt`, for `check_saved`.

    Args:
        model: a transformers model; `state` has its weights.

    Raises:
        OSError: the weights could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with without_progress_bars():
        try:
            model.save_pretrained(folder, state_dict=dict(state))
        except Exception:  # noqa: BLE001 - each part is written by itself, and names its own failure
            _write_parts(model, folder, state)
        with noted(folder, "the tokenizer"):
            tokenizer.save_pretrained(folder)


def _write_parts(model: Any, folder: Path, state: dict[str, Tensor]) -> None:
    named = state
    with noted(folder, "the names of the weights as in the hub's files"):
        named = revert_weight_conversion(model, dict(state))
    save_torch_state_dict(named, folder)
    _write_settings(model, folder)


def write_around(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what a folder has next to weights that are written elsewhere; see `write_folder`."""
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    with without_progress_bars():
        if model.is_remote_code():
            with noted(folder, "the code of the model"):
                custom_object_save(model, folder, config=model.config)
        _write_settings(model, folder)
        with noted(folder, "the tokenizer"):
            tokenizer.save_pretrained(folder)


def _write_settings(model: Any, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    with noted(folder, "config.json"):
        model.config.save_pretrained(folder)
    if model.can_generate():
        with noted(folder, "generation_config.json"):
            model.generation_config.save_pretrained(folder)


@contextmanager
def noted(folder: Path, what: str) -> Iterator[None]:
    """Write a failure of the block to a file of the model's folder, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the weights of a long run are at stake
        reason = " ".join(str(error).split())[:600]
        with (folder / PROBLEMS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{what} could not be written: {type(error).__name__}: {reason}\n")


def check_saved(folder: Path) -> None:
    """End a run whose model was written in part.

    Raises:
        RunFailed: names every part that is missing.
    """
    file = folder / PROBLEMS_FILE
    if not file.is_file():
        return
    problems = "; ".join(file.read_text(encoding="utf-8").splitlines())
    raise RunFailed(
        f"the weights are in {folder}, but it is not a whole model: {problems}. Copy what is "
        f"missing from the model that the run started from"
    )
