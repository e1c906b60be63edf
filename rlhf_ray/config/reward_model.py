"""What a reward model learns from preferences."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


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
