"""How long a stage that learns from examples goes on, and when it looks at held-out rows."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# The stages that learn from examples; only the ranks of `training` run in them.
FIT_STAGES = ("pretrain", "sft", "reward_model", "preference")


@dataclass
class FitConfig:
    """Learning from examples: how long, and when to look at held-out ones."""

    samples_per_step: int = setting(
        16,
        "Samples per optimiser step, over all ranks; of preferences, rankings.",
        unit="samples",
        minimum=1,
    )
    num_epochs: int = setting(1, "Times that every sample is learnt from.", minimum=1)
    max_steps: int | None = setting(
        None,
        "Most optimiser steps; null goes through all epochs. The learning rate's schedule ends "
        "where the steps do.",
        unit="optimiser steps",
        minimum=1,
    )
    eval_every: int = setting(
        0,
        "Steps between two evaluations on the held-out rows; 0 evaluates before the first step "
        "and after the last one alone.",
        unit="optimiser steps",
        minimum=0,
    )
    patience: int = setting(
        0,
        "Evaluations in a row without an improvement after which the stage stops; 0 never stops "
        "it early.",
        unit="evaluations",
        minimum=0,
    )
    min_improvement: float = setting(
        0.0,
        "How far the held-out loss must fall below the lowest one so far to be an improvement.",
        unit="nats",
        minimum=0,
    )
    keep_best: bool = setting(
        True,
        "The result is the model of the last evaluation that was an improvement; false takes "
        "that of the last step. Without held-out rows there is only the last one.",
    )
