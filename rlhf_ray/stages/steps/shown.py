"""A stage of a pipeline in one line of its plan."""

from __future__ import annotations

from rlhf_ray.config.batch_table import batch_table
from rlhf_ray.config.keys.readers import is_read
from rlhf_ray.config.keys.values import shown
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import values_of


def difference(config: Config, recipe: Config | None) -> str:
    """The keys of a stage whose values are not those of its recipe.

    Args:
        recipe: the stage as the recipe has it; None for a stage of the user's own, of which the
            sizes of its batch are named.
    """
    if recipe is None or recipe.stage.name != config.stage.name:
        return _batch(config)
    before, now = values_of(recipe), values_of(config)
    changed = [
        f"{key}={shown(now[key])}"
        for key in now
        if now[key] != before[key] and is_read(key, config.stage.name)
    ]
    return f"other than the recipe: {', '.join(changed)}" if changed else "as in the recipe"


def _batch(config: Config) -> str:
    if not (config.is_fit or config.stage.name == "rl"):
        return "of no recipe"
    rows = ", ".join(f"{row.name} {row.value}" for row in batch_table(config))
    return f"of no recipe: {rows}"
