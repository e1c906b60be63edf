"""The estimator, the loss and the penalty: everything that turns rewards into gradients."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# Estimators whose baseline is made of the other samples of the same prompt.
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
        "Against the prompt's other samples: group (GRPO), rloo, opo, maxrl; against a moving mean "
        "of all rewards: baseline (REINFORCE); against a greedy answer: remax; per token: returns "
        "(Monte Carlo, REINFORCE++), gae (with a critic, PPO), process (a reward for every step).",
        choices=(*GROUP_ADVANTAGES, "baseline", "remax", "returns", "gae"),
    )
    normalize_by_std: bool = setting(
        True, "Divide group advantages (also of steps) by the group's standard deviation."
    )
    group_std_estimator: str = setting(
        "unbiased",
        "Which standard deviation: of n - 1, of n, or of the other samples alone.",
        choices=("unbiased", "biased", "leave_one_out"),
    )
    group_std_epsilon: float = setting(
        1e-6, "Added to the group's standard deviation, outside the root.", minimum=0
    )
    baseline_decay: float = setting(
        0.9, "Weight of the past in the moving mean of advantage=baseline.", minimum=0, below=1
    )
    gamma: float = setting(1.0, "Discount per token.", above=0, maximum=1)
    gae_lambda: float = setting(0.95, "GAE lambda.", minimum=0, maximum=1)
    bootstrap_truncated: bool = setting(
        False,
        "GAE: an answer that was cut off at the limit goes on with the critic's value, instead of "
        "ending there.",
    )
    reward_level: str = setting(
        "outcome",
        "returns and gae: the reward of an answer on its last token, or that of every step on the "
        "token that the step ends with. process always trains on steps.",
        choices=("outcome", "step"),
    )
    whiten_advantages: bool = setting(
        False, "Shift and scale advantages to mean 0 and variance 1 over the global batch."
    )
    whiten_per_task: bool = setting(False, "Whiten the samples of every task by themselves.")
    reward_normalization: str = setting(
        "none",
        "Shift and scale the rewards of every task (data.source_column) by its own mean and "
        "standard deviation, before penalties, clipping and advantages: those of the batch, or "
        "running ones of all batches so far, this one included.",
        choices=("none", "batch", "running"),
    )
    reward_clip: float | None = setting(
        None,
        "Clip a sample's total reward to [-x, x], after its normalisation and before anything "
        "else.",
        above=0,
    )

    policy_loss: str = setting(
        "clip",
        "Surrogate: clip (PPO), unclipped, cispo, sapo, gmpo, clip_cov, kl_cov.",
        choices=("clip", "unclipped", "cispo", "sapo", "gmpo", "clip_cov", "kl_cov"),
    )
    ratio_level: str = setting(
        "token",
        "Probability ratio of every token, of the sequence (GSPO), or of the sequence with the "
        "gradient of the token (GSPO-token).",
        choices=("token", "sequence", "sequence_token"),
    )
    clip_ratio_low: float = setting(
        0.2, "Lower clip range of the probability ratio: 1 - x.", above=0, maximum=1
    )
    clip_ratio_high: float = setting(
        0.2, "Upper clip range of the probability ratio: 1 + x.", above=0
    )
    dual_clip: float | None = setting(
        None, "Largest ratio that counts against a negative advantage; null for none.", above=1
    )
    log_ratio_clamp: float = setting(
        20.0, "Log ratios are clamped to [-x, x] before the exponential.", unit="nats", above=0
    )
    sapo_positive_temperature: float = setting(1.0, "SAPO: gate where A > 0.", above=0)
    sapo_negative_temperature: float = setting(1.05, "SAPO: gate elsewhere.", above=0)
    covariance_share: float = setting(
        0.0002, "Clip-Cov, KL-Cov: share of the tokens that are chosen.", above=0, maximum=1
    )
    covariance_low: float = setting(1.0, "Clip-Cov: covariance above which tokens are candidates.")
    covariance_high: float = setting(5.0, "Clip-Cov: covariance below which they are.")
    covariance_kl_coefficient: float = setting(
        1.0, "KL-Cov: weight of the penalty on the chosen tokens.", minimum=0
    )
    reduction: str = setting(
        "token_mean",
        "From tokens to one loss: mean over tokens, mean over sequences of their means or sums, "
        "or sum over sequences x generation.max_response_tokens (Dr. GRPO).",
        choices=("token_mean", "sequence_mean", "sequence_sum", "constant_length"),
    )
    num_epochs: int = setting(1, "Passes over one batch of rollouts.", minimum=1)
    num_mini_batches: int = setting(1, "Optimiser steps per pass.", minimum=1)
    positive_coefficient: float = setting(
        0.0, "Weight of the language-model loss on tokens with a positive advantage.", minimum=0
    )
    ptx_coefficient: float = setting(
        0.0,
        "Weight of the language-model loss on the texts of texts.path (PPO-ptx); 0 reads none.",
        minimum=0,
    )

    old_policy: str = setting(
        "auto",
        "Whose log-probabilities the ratio is against: the learner's at the start of the step, or "
        "the engine's (bypass). auto: the engine's where rollouts may be older (max_staleness, "
        "replay) and nothing corrects the gap between the two.",
        choices=("auto", "learner", "generator"),
    )
    correction_weight: str = setting(
        "none",
        "Truncated importance weight of the learner over the engine, by token or by sequence.",
        choices=("none", "token", "sequence"),
    )
    correction_cap: float = setting(2.0, "Largest such weight.", above=0)
    correction_filter: str = setting(
        "none",
        "Leave out what is outside of the bounds: tokens, sequences by the product of their "
        "ratios, or by its geometric mean.",
        choices=("none", "token", "sequence", "geometric"),
    )
    correction_low: float = setting(0.5, "Least ratio that the filter keeps.", minimum=0)
    correction_high: float = setting(2.0, "Largest ratio that the filter keeps.", above=0)
    correction_reject: bool = setting(
        False, "What the filter leaves out leaves the means too, instead of counting as 0."
    )

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
        "KL divergence per token: estimated from the sampled one (Schulman 2020), or full, of the "
        "whole distribution over the tokens that generation.top_k leaves.",
        choices=("k1", "k2", "k3", "abs", "full"),
    )
    kl_gradient: str = setting(
        "estimator",
        "In the loss: the gradient of the estimator itself, or the unbiased one (that of k2).",
        choices=("estimator", "unbiased"),
    )
    kl_position_discount: float = setting(
        1.0, "In the reward: the penalty of token t of an answer counts x^t.", above=0, maximum=1
    )
    kl_controller: str = setting(
        "fixed",
        "Constant coefficient, in a straight line to kl_final, or adapted towards kl_target.",
        choices=("fixed", "scheduled", "adaptive"),
    )
    kl_target: float = setting(
        6.0, "Adaptive controller: KL per response to hold.", unit="nats", above=0
    )
    kl_horizon: int = setting(
        10_000, "Adaptive controller: samples over which it moves.", unit="samples", minimum=1
    )
    kl_final: float = setting(0.0, "Scheduled controller: last coefficient.", minimum=0)
    kl_schedule_steps: int = setting(
        100, "Scheduled controller: steps until then.", unit="steps", minimum=1
    )

    reference_every: int = setting(
        0,
        "Steps after which the reference moves to the policy, again and again; 0 never moves it.",
        unit="steps",
        minimum=0,
    )
    reference_decay: float = setting(
        0.0,
        "Weight of the old reference in every such move: 0 replaces it by the policy, above 0 it "
        "is an exponential moving average.",
        minimum=0,
        below=1,
    )

    entropy_coefficient: float = setting(0.0, "Weight of the entropy bonus.", minimum=0)
    entropy_target: float | None = setting(
        None,
        "Entropy per token to hold: the bonus counts below it only, and its weight moves by "
        "entropy_step after every step; null for a constant bonus.",
        unit="nats",
        above=0,
    )
    entropy_step: float = setting(0.005, "With entropy_target: see there.", above=0)

    value_clip: float | None = setting(
        0.2,
        "Clip range of the value prediction around the old one; null switches it off.",
        above=0,
    )
    value_huber_delta: float | None = setting(
        None, "Errors of the value beyond it count linearly; null for squares.", above=0
    )
    critic_warmup_steps: int = setting(
        0, "Steps at the start in which only the critic learns.", unit="steps", minimum=0
    )

    @property
    def num_greedy(self) -> int:
        """Greedy answers to every prompt, beside `samples_per_prompt`; they are not trained on."""
        return int(self.advantage == "remax")

    @property
    def rewards_steps(self) -> bool:
        """Trains on a reward for every step of an answer, and needs to know where they end."""
        return self.advantage == "process" or self.reward_level == "step"

    @property
    def has_importance_correction(self) -> bool:
        """Importance weights or a filter correct for sampling by the engine, not the learner."""
        return self.correction_weight != "none" or self.correction_filter != "none"
