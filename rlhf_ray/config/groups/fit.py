"""How long a stage that learns from examples goes on, and when it looks at held-out rows."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


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


@dataclass
class RewardModelConfig:
    """The loss of `stage=reward_model`."""

    use_margins: bool = setting(
        True,
        "The scores of two answers are to differ by the margin of their row, where it has one "
        "(examples.margin_column); false takes no margin into account.",
    )
    centring_coefficient: float = setting(
        0.0,
        "Weight of the squared sum of the two scores of a pair, which draws scores to 0; 0 for "
        "none, 0.01 is usual.",
        minimum=0,
    )


PAIR_LOSSES = ("sigmoid", "robust", "ipo", "hinge")


# Those that know of flipped labels.
SMOOTHED_LOSSES = ("sigmoid", "robust")


FEEDBACK_LOSS = "kto"


@dataclass
class PreferenceConfig:
    """Preference training: DPO and its kin on rankings, KTO on feedback."""

    loss: str = setting(
        "sigmoid",
        "sigmoid (DPO), robust, ipo and hinge learn from rankings, kto from feedback.",
        choices=(*PAIR_LOSSES, FEEDBACK_LOSS),
    )
    beta: float = setting(
        0.1,
        "How strongly the policy is held to the model that it starts from; larger is closer. Of "
        "ipo: tau.",
        above=0,
    )
    label_smoothing: float = setting(
        0.0,
        "Probability that a label is flipped, for sigmoid (conservative DPO) and robust.",
        minimum=0,
        below=0.5,
    )
    divide_by_length: bool = setting(
        False, "Divide the log ratio of every answer by its number of tokens; of rankings."
    )
    desirable_weight: float = setting(1.0, "Weight of good answers, for kto.", minimum=0)
    undesirable_weight: float = setting(1.0, "Weight of bad answers, for kto.", minimum=0)
    sft_coefficient: float = setting(
        0.0,
        "Weight of the best answers' negative log-likelihood per token in the loss; of rankings.",
        minimum=0,
    )

    @property
    def is_of_feedback(self) -> bool:
        """It learns from single answers that are good or bad."""
        return self.loss == FEEDBACK_LOSS
