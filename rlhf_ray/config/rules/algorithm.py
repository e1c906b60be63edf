"""Rules of the algorithm: settings that cancel each other or need each other."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config

# Surrogates defined by the ratios of single tokens.
_TOKEN_SURROGATES = ("gmpo", "clip_cov", "kl_cov")


def _kl(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.kl_controller == "adaptive" and algorithm.kl_coefficient == 0:
        yield (
            "algorithm.kl_coefficient=0: algorithm.kl_controller=adaptive multiplies the "
            "coefficient, and 0 stays 0; set a starting coefficient, for instance 0.05, or "
            "kl_controller=fixed"
        )
    if (
        config.needs_reference
        and algorithm.kl_placement == "loss"
        and algorithm.kl_estimator == "k1"
        and algorithm.kl_gradient == "estimator"
    ):
        yield (
            "algorithm.kl_estimator=k1: inside the loss its gradient averages to zero, so there "
            "would be no penalty; use k2 or k3, algorithm.kl_gradient=unbiased, or "
            "algorithm.kl_placement=reward"
        )


def _full_kl(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.kl_estimator != "full":
        return
    if not config.generation.top_k:
        yield (
            "algorithm.kl_estimator=full: generation.top_k=0 leaves the whole vocabulary, whose "
            "log-probabilities are not stored for every token; set generation.top_k, or use k3"
        )
    if algorithm.kl_placement == "reward":
        yield (
            "algorithm.kl_estimator=full: algorithm.kl_placement=reward penalises only the "
            "sampled token; use algorithm.kl_placement=loss, or k1"
        )


def _moving_reference(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.reference_every > 0 and not config.needs_reference:
        yield (
            f"algorithm.reference_every={algorithm.reference_every}: without a KL penalty "
            f"(algorithm.kl_coefficient=0) there is no reference to update; set "
            f"kl_coefficient above 0, for instance to 0.05, or reference_every to 0"
        )
    if algorithm.reference_decay > 0 and algorithm.reference_every == 0:
        yield (
            f"algorithm.reference_decay={algorithm.reference_decay:g}: the reference is never "
            f"updated (algorithm.reference_every=0), so there is nothing to average; set "
            f"reference_every to the steps between two updates, for instance 1, or "
            f"reference_decay to 0"
        )


def _success_rates(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if (
        algorithm.advantage == "maxrl"
        and config.needs_reference
        and algorithm.kl_placement == "reward"
    ):
        yield (
            "algorithm.kl_placement=reward: algorithm.advantage=maxrl divides by the mean reward "
            "of a group, which a penalty can make negative; use algorithm.kl_placement=loss"
        )


def _step_rewards(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.reward_level == "step" and algorithm.advantage not in ("returns", "gae"):
        yield (
            f"algorithm.reward_level=step: algorithm.advantage={algorithm.advantage} takes one "
            f"reward per answer; use returns, gae or process, or reward_level=outcome"
        )
    if not algorithm.rewards_steps:
        return
    compares = algorithm.advantage == "process"
    if compares and config.needs_reference and algorithm.kl_placement == "reward":
        yield (
            "algorithm.kl_placement=reward: algorithm.advantage=process compares the rewards of "
            "steps, and a penalty on every token belongs to none of them; use "
            "algorithm.kl_placement=loss"
        )
    if algorithm.reward_clip is not None:
        source = "algorithm.advantage=process" if compares else "algorithm.reward_level=step"
        yield (
            f"algorithm.reward_clip={algorithm.reward_clip:g}: clips the total reward of a sample, "
            f"but {source} trains on the rewards of its steps; set it to null, and clip them in "
            f"the reward function"
        )


def _ratio_level(config: Config) -> Iterator[str]:
    loss, level = config.algorithm.policy_loss, config.algorithm.ratio_level
    if loss in _TOKEN_SURROGATES and level != "token":
        yield (
            f"algorithm.ratio_level={level}: algorithm.policy_loss={loss} is defined by the "
            f"ratios of single tokens; use token, or policy_loss=clip"
        )


def _dual_clip(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.dual_clip is None:
        return
    if algorithm.policy_loss not in ("clip", "clip_cov"):
        yield (
            f"algorithm.dual_clip={algorithm.dual_clip:g}: algorithm.policy_loss="
            f"{algorithm.policy_loss} has no clip; set it to null, or policy_loss to clip"
        )
    elif algorithm.dual_clip <= 1 + algorithm.clip_ratio_high:
        yield (
            f"algorithm.dual_clip={algorithm.dual_clip:g}: must be above the upper clip, 1 + "
            f"algorithm.clip_ratio_high = {1 + algorithm.clip_ratio_high:g}; raise it, or set it "
            f"to null"
        )


def _covariance_bounds(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    low, high = algorithm.covariance_low, algorithm.covariance_high
    if algorithm.policy_loss == "clip_cov" and low >= high:
        yield (
            f"algorithm.covariance_low={low:g}: must be below "
            f"algorithm.covariance_high={high:g}; lower covariance_low or raise covariance_high"
        )


def _correction(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    low, high = algorithm.correction_low, algorithm.correction_high
    if algorithm.correction_filter != "none" and low >= high:
        yield (
            f"algorithm.correction_low={low:g}: must be below "
            f"algorithm.correction_high={high:g}; lower correction_low or raise correction_high"
        )
    if algorithm.correction_reject and algorithm.correction_filter == "none":
        yield (
            "algorithm.correction_reject=true: algorithm.correction_filter=none filters "
            "nothing; choose a filter, or set it to false"
        )
    if algorithm.has_importance_correction and algorithm.old_policy == "generator":
        yield (
            "algorithm.old_policy=generator: the ratio is taken against the engine already, so a "
            "correction would count the difference twice; use old_policy=learner, or "
            "correction_weight=none and correction_filter=none"
        )


def _whitening(config: Config) -> Iterator[str]:
    if config.algorithm.whiten_per_task and not config.algorithm.whiten_advantages:
        yield (
            "algorithm.whiten_per_task=true: algorithm.whiten_advantages=false does not whiten; "
            "set it to true, or whiten_per_task to false"
        )


def _reward_normalization(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.reward_normalization == "none":
        return
    key = f"algorithm.reward_normalization={algorithm.reward_normalization}"
    if algorithm.rewards_steps:
        source = "advantage=process" if algorithm.advantage == "process" else "reward_level=step"
        yield (
            f"{key}: algorithm.{source} trains on the rewards of steps; a shift of "
            f"each would favour answers with many or few steps; set it to none, and scale "
            f"the rewards in the reward function"
        )
    elif algorithm.advantage == "group" and algorithm.normalize_by_std:
        yield (
            f"{key}: algorithm.normalize_by_std=true divides by the deviation of every group, "
            f"which undoes any scale; set the first to none or the second to false"
        )
    elif algorithm.advantage == "maxrl":
        yield (
            f"{key}: algorithm.advantage=maxrl divides by the mean reward of a group, which a "
            f"shift would turn negative; set it to none"
        )
    elif algorithm.advantage == "baseline":
        yield (
            f"{key}: algorithm.advantage=baseline takes a moving mean of the raw rewards as "
            f"its baseline; set it to none, or use algorithm.advantage=returns"
        )


def _bootstrap(config: Config) -> Iterator[str]:
    if config.algorithm.bootstrap_truncated and not config.needs_critic:
        yield (
            f"algorithm.bootstrap_truncated=true: algorithm.advantage="
            f"{config.algorithm.advantage} has no critic; set it to false, or use algorithm=ppo"
        )


def _keys(*names: str) -> tuple[str, ...]:
    return tuple(f"algorithm.{name}" for name in names)


_KL = _keys("kl_coefficient", "kl_controller", "kl_final", "kl_placement")

ALGORITHM_RULES: tuple[Rule, ...] = (
    Rule(
        about="`algorithm.kl_controller=adaptive` needs `algorithm.kl_coefficient` above 0; `k1` "
        "needs `algorithm.kl_placement=reward` or `algorithm.kl_gradient=unbiased`, because its "
        "gradient inside the loss averages to zero.",
        keys=(*_KL, *_keys("kl_estimator", "kl_gradient")),
        problems=_kl,
    ),
    Rule(
        about="`algorithm.kl_estimator=full` needs `generation.top_k` and "
        "`algorithm.kl_placement=loss`.",
        keys=(*_keys("kl_estimator", "kl_placement"), "generation.top_k"),
        problems=_full_kl,
    ),
    Rule(
        about="`algorithm.reference_every` needs a reference (`algorithm.kl_coefficient` above 0, "
        "or a schedule that ends above it), `algorithm.reference_decay` needs "
        "`algorithm.reference_every`.",
        keys=(*_KL, *_keys("reference_every", "reference_decay")),
        problems=_moving_reference,
    ),
    Rule(
        about="`algorithm.advantage=maxrl` excludes a KL penalty in the reward.",
        keys=(*_KL, "algorithm.advantage"),
        problems=_success_rates,
    ),
    Rule(
        about="`algorithm.advantage=process` excludes a KL penalty in the reward; "
        "`algorithm.reward_level=step` needs returns or gae; both exclude "
        "`algorithm.reward_clip`.",
        keys=(*_KL, *_keys("advantage", "reward_clip", "reward_level")),
        problems=_step_rewards,
    ),
    Rule(
        about="`algorithm.policy_loss` gmpo, clip_cov and kl_cov need "
        "`algorithm.ratio_level=token`.",
        keys=_keys("policy_loss", "ratio_level"),
        problems=_ratio_level,
    ),
    Rule(
        about="`algorithm.dual_clip` needs `algorithm.policy_loss` clip or clip_cov, and is above "
        "1 + `algorithm.clip_ratio_high`.",
        keys=_keys("dual_clip", "policy_loss", "clip_ratio_high"),
        problems=_dual_clip,
    ),
    Rule(
        about="`algorithm.covariance_low` is below `algorithm.covariance_high`.",
        keys=_keys("covariance_low", "covariance_high", "policy_loss"),
        problems=_covariance_bounds,
    ),
    Rule(
        about="`algorithm.correction_low` is below `algorithm.correction_high`; "
        "`algorithm.correction_reject` needs a filter; a correction excludes "
        "`algorithm.old_policy=generator`.",
        keys=_keys(
            "correction_weight",
            "correction_filter",
            "correction_low",
            "correction_high",
            "correction_reject",
            "old_policy",
        ),
        problems=_correction,
    ),
    Rule(
        about="`algorithm.bootstrap_truncated` needs `algorithm.advantage=gae`.",
        keys=_keys("bootstrap_truncated", "advantage"),
        problems=_bootstrap,
    ),
    Rule(
        about="`algorithm.reward_normalization` needs rewards of whole answers, and an estimator "
        "that keeps their scale: gae, returns, rloo, opo, remax, or group without "
        "`algorithm.normalize_by_std`.",
        keys=_keys("reward_normalization", "advantage", "normalize_by_std", "reward_level"),
        problems=_reward_normalization,
    ),
    Rule(
        about="`algorithm.whiten_per_task` needs `algorithm.whiten_advantages`.",
        keys=_keys("whiten_per_task", "whiten_advantages"),
        problems=_whitening,
    ),
)
