"""Learning from examples: length, evaluation on held-out rows, losses."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class FitConfig:
    """Learning from examples: steps, and evaluations on held-out rows."""

    batch_size: int = setting(
        16,
        "Samples per optimiser step, over all ranks; with preferences, rankings.",
        unit="samples",
        minimum=1,
    )
    num_epochs: int = setting(1, "Passes over the samples.", minimum=1)
    max_steps: int | None = setting(
        None,
        "Most optimiser steps; null runs all epochs. The learning-rate schedule ends with the "
        "steps.",
        unit="optimiser steps",
        minimum=1,
    )
    eval_every: int = setting(
        0,
        "Steps between two evaluations on the held-out rows; 0 evaluates only before the first "
        "and after the last step.",
        unit="optimiser steps",
        minimum=0,
    )
    patience: int = setting(
        0,
        "Early stopping: evaluations in a row without an improvement; 0 never stops early.",
        unit="evaluations",
        minimum=0,
    )
    min_improvement: float = setting(
        0.0,
        "Least decrease of the held-out loss below its minimum that is an improvement.",
        unit="nats",
        minimum=0,
    )
    keep_best: bool = setting(
        True,
        "Keep the model of the best evaluation; false, or no held-out rows, keeps the model of "
        "the last step.",
    )


@dataclass
class RewardModelConfig:
    """The loss of `stage=reward_model`."""

    use_margins: bool = setting(
        True,
        "Require the scores of two answers to differ by the margin of their row, if it has one "
        "(examples.margin_column); false ignores margins.",
    )
    centring_coefficient: float = setting(
        0.0,
        "Weight of the squared sum of the two scores of a pair, which centres scores at 0; 0 for "
        "none, 0.01 is usual.",
        minimum=0,
    )


PAIR_LOSSES = ("sigmoid", "robust", "ipo", "hinge")


# Losses with a model of flipped labels.
SMOOTHED_LOSSES = ("sigmoid", "robust")


FEEDBACK_LOSS = "kto"


@dataclass
class PreferenceConfig:
    """Preference training: DPO and its variants on rankings, KTO on feedback."""

    loss: str = setting(
        "sigmoid",
        "sigmoid (DPO), robust, ipo and hinge learn from rankings, kto from feedback.",
        choices=(*PAIR_LOSSES, FEEDBACK_LOSS),
    )
    beta: float = setting(
        0.1,
        "Strength of the pull to the starting model; larger stays closer. For ipo: tau.",
        above=0,
    )
    label_smoothing: float = setting(
        0.0,
        "Probability that a label is flipped, for sigmoid (conservative DPO) and robust.",
        minimum=0,
        below=0.5,
    )
    divide_by_length: bool = setting(
        False, "Divide the log ratio of every answer by its number of tokens; rankings only."
    )
    desirable_weight: float = setting(1.0, "Weight of good answers, for kto.", minimum=0)
    undesirable_weight: float = setting(1.0, "Weight of bad answers, for kto.", minimum=0)
    sft_coefficient: float = setting(
        0.0,
        "Weight of the best answers' negative log-likelihood per token in the loss; rankings only.",
        minimum=0,
    )

    @property
    def is_of_feedback(self) -> bool:
        """Whether the loss takes single answers labelled good or bad."""
        return self.loss == FEEDBACK_LOSS
