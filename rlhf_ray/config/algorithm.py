"""The estimator, the loss and the penalty: everything that turns rewards into gradients."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class AlgorithmConfig:
    """Policy-gradient algorithm. The group files under conf/algorithm are published methods."""

    name: str = setting("grpo", "Name of the method, for logs and the run's summary.")
    advantage: str = setting(
        "group",
        "group: reward against the mean of its group (GRPO); gae: with a critic (PPO).",
        choices=("group", "gae"),
    )
    normalize_by_std: bool = setting(
        True, "Divide group advantages by the group's unbiased standard deviation."
    )
    group_std_epsilon: float = setting(
        1e-6, "Added to the group's standard deviation, outside the root.", minimum=0
    )
    gamma: float = setting(1.0, "Discount per token.", above=0, maximum=1)
    gae_lambda: float = setting(0.95, "GAE lambda.", minimum=0, maximum=1)
    whiten_advantages: bool = setting(
        False, "Shift and scale advantages to mean 0 and variance 1 over the global batch."
    )
    reward_clip: float | None = setting(
        None, "Clip a sample's total reward to [-x, x] before anything else.", above=0
    )
    clip_ratio_low: float = setting(
        0.2, "Lower clip range of the probability ratio: 1 - x.", above=0, below=1
    )
    clip_ratio_high: float = setting(
        0.2, "Upper clip range of the probability ratio: 1 + x.", above=0
    )
    log_ratio_clamp: float = setting(
        20.0, "Log ratios are clamped to [-x, x] before the exponential.", unit="nats", above=0
    )
    num_epochs: int = setting(1, "Passes over one batch of rollouts.", minimum=1)
    num_mini_batches: int = setting(1, "Optimiser steps per pass.", minimum=1)
    kl_coefficient: float = setting(
        0.0, "Weight of the KL penalty to the reference; 0 starts no reference.", minimum=0
    )
    kl_placement: str = setting(
        "loss",
        "Penalty inside the loss, or subtracted from the per-token reward.",
        choices=("loss", "reward"),
    )
    kl_estimator: str = setting(
        "k3",
        "Estimator of the KL divergence per token (Schulman 2020).",
        choices=("k1", "k2", "k3"),
    )
    kl_controller: str = setting(
        "fixed",
        "Constant coefficient, or adapted towards kl_target.",
        choices=("fixed", "adaptive"),
    )
    kl_target: float = setting(
        6.0, "Adaptive controller: KL per response to hold.", unit="nats", above=0
    )
    kl_horizon: int = setting(
        10_000, "Adaptive controller: samples over which it moves.", unit="samples", minimum=1
    )
    value_clip: float | None = setting(
        0.2,
        "Clip range of the value prediction around the old one; null switches it off.",
        above=0,
    )
    critic_warmup_steps: int = setting(
        0, "Steps at the start in which only the critic learns.", unit="steps", minimum=0
    )
