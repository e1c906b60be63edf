"""Lines below the table of an evaluation: its prompts, and models that were trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.card import read_origin, shown_name


def prompt_notes(prompts: Mapping[str, Any], models: Mapping[str, str]) -> str:
    """The name and number of the prompts, and a line for each model that has learnt from them.

    Args:
        prompts: `path`, `split` and `num_prompts`, as in evaluation.json.
        models: paths by name. What a model was trained on is known from the folder of its run.
    """
    path, split, number = (prompts[key] for key in ("path", "split", "num_prompts"))
    of_split = f", split {split}" if split else ""
    lines = [f"Prompts: {shown_name(str(path))}{of_split}: {number:,} prompts"]
    lines += [
        f"note: {name} was trained on these prompts, so that its numbers say nothing about new ones"
        for name, model in models.items()
        if _trained_on(Path(model).parent, path, split)
    ]
    return "\n".join(lines)


def _trained_on(run: Path, path: Any, split: Any) -> bool:
    try:
        origin = read_origin(run)
    except (RequestError, OSError):  # Files of someone else's, which a note must not depend on.
        return False
    is_rl = origin.value("stage.name") == "rl"
    return is_rl and (origin.value("data.path"), origin.value("data.split")) == (path, split)
