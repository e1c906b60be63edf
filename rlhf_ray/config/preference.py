"""How a policy learns from preferences without a reward model."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

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
