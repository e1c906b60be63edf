"""Advantage estimator, loss and KL penalty: the way from rewards to gradients."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# Estimators whose baseline comes from the other samples of the same prompt.
GROUP_ADVANTAGES = ("group", "rloo", "opo", "maxrl", "process")


class OldLogprobsFrom(enum.StrEnum):
    """Source of the old log-probabilities, against which the probability ratio is taken.

    LEARNER_BEFORE_UPDATE: the learner scores the batch in a forward pass before the update.
    LEARNER_IN_UPDATE: the only optimiser step of the batch takes its own log-probabilities,
    detached; the learner scores nothing beforehand.
    """

    GENERATOR = "generator"
    LEARNER_BEFORE_UPDATE = "learner_before_update"
    LEARNER_IN_UPDATE = "learner_in_update"


@dataclass
class AlgorithmConfig:
    """Policy-gradient algorithm. The group files under conf/algorithm are published methods."""

    name: str = setting("grpo", "Name of the method, for logs and the run's summary.")

    advantage: str = setting(
        "group",
        "Advantage estimator. Baseline from the prompt's other samples: group (GRPO), rloo, opo, "
        "maxrl; from a moving mean of all rewards: baseline (REINFORCE); from a greedy answer: "
        "remax. Per token: returns (Monte Carlo, REINFORCE++), gae (with a critic, PPO), process "
        "(a reward for every step).",
        choices=(*GROUP_ADVANTAGES, "baseline", "remax", "returns", "gae"),
    )
    normalize_by_std: bool = setting(
        True, "Divide advantages of a group, or of its steps, by the group's standard deviation."
    )
    group_std_estimator: str = setting(
        "unbiased",
        "Standard deviation: unbiased (n - 1), biased (n), or over the other samples only.",
        choices=("unbiased", "biased", "leave_one_out"),
    )
    group_std_epsilon: float = setting(
        1e-6, "Added to the group's standard deviation, outside the square root.", minimum=0
    )
    reward_tolerance: float = setting(
        2.0**-7,
        "Rewards that differ by at most this share of the largest count as equal: in a group (or "
        "its steps) whose advantages are divided by a deviation, in dynamic sampling, replay and "
        "reward_normalization. The default is one step of bfloat16; lower it for exact rewards "
        "that differ by less.",
        minimum=0,
        below=1,
    )
    baseline_decay: float = setting(
        0.9, "Weight of the past in the moving mean of advantage=baseline.", minimum=0, below=1
    )
    gamma: float = setting(1.0, "Discount per token.", above=0, maximum=1)
    gae_lambda: float = setting(0.95, "GAE lambda.", minimum=0, maximum=1)
    bootstrap_truncated: bool = setting(
        False,
        "GAE: an answer cut off at the token limit continues with the critic's value instead of "
        "ending there with value 0.",
    )
    reward_level: str = setting(
        "outcome",
        "returns and gae: put the reward of an answer on its last token, or the reward of every "
        "step on the last token of the step. process always trains on steps.",
        choices=("outcome", "step"),
    )
    whiten_advantages: bool = setting(
        False, "Shift and scale advantages to mean 0 and variance 1 over the global batch."
    )
    whiten_per_task: bool = setting(False, "Whiten the samples of every task separately.")
    reward_normalization: str = setting(
        "none",
        "Shift and scale the rewards of every task (data.source_column) by the task's mean and "
        "standard deviation, before penalties, clipping and advantages: over the batch, or "
        "running over all batches so far, this one included.",
        choices=("none", "batch", "running"),
    )
    reward_clip: float | None = setting(
        None,
        "Clip a sample's total reward to [-x, x], after normalisation and before anything else; "
        "null does not clip.",
        above=0,
    )

    policy_loss: str = setting(
        "clip",
        "Surrogate loss: clip (PPO), unclipped, cispo, sapo, gmpo, clip_cov, kl_cov.",
        choices=("clip", "unclipped", "cispo", "sapo", "gmpo", "clip_cov", "kl_cov"),
    )
    ratio_level: str = setting(
        "token",
        "Probability ratio per token, per sequence (GSPO), or per sequence with the gradient of "
        "the token (GSPO-token).",
        choices=("token", "sequence", "sequence_token"),
    )
    clip_ratio_low: float = setting(
        0.2, "Lower clip range of the probability ratio: 1 - x.", above=0, maximum=1
    )
    clip_ratio_high: float = setting(
        0.2, "Upper clip range of the probability ratio: 1 + x.", above=0
    )
    dual_clip: float | None = setting(
        None, "Upper bound of the ratio where the advantage is negative; null for none.", above=1
    )
    log_ratio_clamp: float = setting(
        20.0, "Log ratios are clamped to [-x, x] before the exponential.", unit="nats", above=0
    )
    sapo_positive_temperature: float = setting(
        1.0, "SAPO: temperature of the gate where the advantage is positive.", above=0
    )
    sapo_negative_temperature: float = setting(
        1.05, "SAPO: temperature of the gate elsewhere.", above=0
    )
    covariance_share: float = setting(
        0.0002, "Clip-Cov, KL-Cov: share of the tokens that are selected.", above=0, maximum=1
    )
    covariance_low: float = setting(1.0, "Clip-Cov: lower bound of a candidate's covariance.")
    covariance_high: float = setting(5.0, "Clip-Cov: upper bound of a candidate's covariance.")
    covariance_kl_coefficient: float = setting(
        1.0, "KL-Cov: weight of the penalty on the selected tokens.", minimum=0
    )
    reduction: str = setting(
        "token_mean",
        "Reduction of the token losses: mean over tokens; mean over sequences of their means or "
        "sums; or sum divided by sequences x generation.max_response_tokens (Dr. GRPO).",
        choices=("token_mean", "sequence_mean", "sequence_sum", "constant_length"),
    )
    num_epochs: int = setting(1, "Passes over one batch of rollouts.", minimum=1)
    num_mini_batches: int = setting(1, "Optimiser steps per pass.", minimum=1)
    nll_coefficient: float = setting(
        0.0, "Weight of the language-model loss on tokens with a positive advantage.", minimum=0
    )
    ptx_coefficient: float = setting(
        0.0,
        "Weight of the language-model loss on the texts of texts.path (PPO-ptx); 0 reads no texts.",
        minimum=0,
    )

    old_policy: str = setting(
        "auto",
        "Denominator of the ratio: log-probabilities of the learner at the start of the step, or "
        "of the engine (bypass). auto takes the engine's where rollouts may be stale "
        "(max_staleness, replay) and no correction_weight or correction_filter is set.",
        choices=("auto", "learner", "generator"),
    )
    correction_weight: str = setting(
        "none",
        "Truncated importance weight, learner over engine, per token or per sequence.",
        choices=("none", "token", "sequence"),
    )
    correction_cap: float = setting(2.0, "Upper bound of the importance weight.", above=0)
    correction_filter: str = setting(
        "none",
        "Filter by the ratio of learner to engine: drop tokens, sequences by the product of their "
        "ratios, or sequences by the geometric mean, that lie outside of the bounds.",
        choices=("none", "token", "sequence", "geometric"),
    )
    correction_low: float = setting(0.5, "Lower bound of the filter.", minimum=0)
    correction_high: float = setting(2.0, "Upper bound of the filter.", above=0)
    correction_reject: bool = setting(
        False, "Exclude filtered tokens from the means too, instead of counting them as 0."
    )

    kl_coefficient: float = setting(
        0.0, "Weight of the KL penalty to the reference; 0 starts no reference.", minimum=0
    )
    kl_placement: str = setting(
        "loss",
        "Penalty inside the loss, or subtracted from the reward of every token.",
        choices=("loss", "reward"),
    )
    kl_estimator: str = setting(
        "k3",
        "KL divergence per token: estimated from the sampled token (Schulman 2020), or full, over "
        "all tokens that generation.top_k leaves.",
        choices=("k1", "k2", "k3", "abs", "full"),
    )
    kl_gradient: str = setting(
        "estimator",
        "In the loss: gradient of the estimator itself, or the unbiased gradient (of k2).",
        choices=("estimator", "unbiased"),
    )
    kl_position_discount: float = setting(
        1.0,
        "In the reward: multiply the penalty of token t of an answer by x^t.",
        above=0,
        maximum=1,
    )
    kl_controller: str = setting(
        "fixed",
        "Coefficient: constant, linear to kl_final, or adapted towards kl_target.",
        choices=("fixed", "scheduled", "adaptive"),
    )
    kl_target: float = setting(
        6.0, "Adaptive controller: target KL per response.", unit="nats", above=0
    )
    kl_horizon: int = setting(
        10_000,
        "Adaptive controller: samples over which the coefficient adapts.",
        unit="samples",
        minimum=1,
    )
    kl_final: float = setting(0.0, "Scheduled controller: final coefficient.", minimum=0)
    kl_schedule_steps: int = setting(
        100, "Scheduled controller: steps until the final coefficient.", unit="steps", minimum=1
    )

    reference_every: int = setting(
        0,
        "Steps between two updates of the reference from the policy; 0 never updates it.",
        unit="steps",
        minimum=0,
    )
    reference_decay: float = setting(
        0.0,
        "Weight of the old reference in an update: 0 replaces it by the policy, above 0 the "
        "reference is an exponential moving average (EMA).",
        minimum=0,
        below=1,
    )

    entropy_coefficient: float = setting(0.0, "Weight of the entropy bonus.", minimum=0)
    entropy_target: float | None = setting(
        None,
        "Target entropy per token: the bonus applies below it only, and its weight changes by "
        "entropy_step after every step; null for a constant bonus.",
        unit="nats",
        above=0,
    )
    entropy_step: float = setting(
        0.005, "Change of the bonus's weight per step, with entropy_target.", above=0
    )

    value_clip: float | None = setting(
        0.2,
        "Clip range of the value prediction around the old value; null does not clip.",
        above=0,
    )
    value_huber_delta: float | None = setting(
        None,
        "Huber loss of the values: errors above it count linearly; null for squared errors.",
        above=0,
    )
    critic_warmup_steps: int = setting(
        0, "Steps at the start in which only the critic is trained.", unit="steps", minimum=0
    )

    @property
    def num_greedy(self) -> int:
        """Greedy answers per prompt, in addition to `samples_per_prompt`; not trained on."""
        return int(self.advantage == "remax")

    @property
    def rewards_steps(self) -> bool:
        """Whether training needs a reward for every step of an answer, and the ends of steps."""
        return self.advantage == "process" or self.reward_level == "step"

    @property
    def has_importance_correction(self) -> bool:
        """Whether importance weights or a filter correct for sampling by the engine."""
        return self.correction_weight != "none" or self.correction_filter != "none"
