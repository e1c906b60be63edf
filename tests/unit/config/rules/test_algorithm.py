"""Rules of the algorithm."""

from __future__ import annotations

from tests.unit.config.rules.cases import check_broken_values, check_rule, each

CASES = [
    (
        "adaptive from nothing",
        ["algorithm.kl_coefficient=0"],
        ["algorithm.kl_controller=adaptive"],
        ["algorithm.kl_coefficient=0", "kl_controller=fixed"],
        ["algorithm.kl_controller=adaptive", "algorithm.kl_coefficient=0.05"],
    ),
    (
        "k1 in the loss",
        [],
        ["algorithm.kl_estimator=k1"],
        ["algorithm.kl_estimator=k1", "k2 or k3", "kl_placement=reward"],
        ["algorithm.kl_estimator=k1", "algorithm.kl_placement=reward"],
    ),
    (
        "k1 in the loss, later",
        ["algorithm.kl_coefficient=0", "algorithm.kl_final=0.1"],
        ["algorithm.kl_estimator=k1", "algorithm.kl_controller=scheduled"],
        ["algorithm.kl_estimator=k1", "kl_gradient=unbiased"],
        ["algorithm.kl_gradient=unbiased"],
    ),
    (
        "a KL of the whole vocabulary",
        [],
        ["algorithm.kl_estimator=full"],
        ["algorithm.kl_estimator=full", "generation.top_k=0", "set generation.top_k"],
        ["algorithm.kl_estimator=full", "generation.top_k=20"],
    ),
    (
        "a KL of whole distributions in the reward",
        ["generation.top_k=20", "algorithm.kl_placement=reward"],
        ["algorithm.kl_estimator=full"],
        ["algorithm.kl_estimator=full", "kl_placement=reward", "or k1"],
        ["algorithm.kl_estimator=full", "algorithm.kl_placement=loss"],
    ),
    (
        "no reference to move",
        [],
        ["algorithm.reference_every=5", "algorithm.kl_coefficient=0"],
        ["algorithm.reference_every=5", "kl_coefficient above 0", "reference_every to 0"],
        ["algorithm.reference_every=5", "algorithm.kl_coefficient=0.05"],
    ),
    (
        "no reference to move now, but later",
        ["algorithm.kl_final=0.1", "algorithm.reference_every=5", "algorithm.kl_coefficient=0.05"],
        ["algorithm.kl_coefficient=0"],
        ["algorithm.reference_every=5", "kl_coefficient above 0"],
        ["algorithm.kl_coefficient=0", "algorithm.kl_controller=scheduled"],
    ),
    (
        "average of a reference that stays",
        ["algorithm.kl_coefficient=0.05"],
        ["algorithm.reference_decay=0.9"],
        ["algorithm.reference_decay=0.9", "algorithm.reference_every=0", "reference_decay to 0"],
        ["algorithm.reference_decay=0.9", "algorithm.reference_every=1"],
    ),
    (
        "success rates with a penalty",
        ["algorithm.advantage=maxrl", "algorithm.kl_coefficient=0.1"],
        ["algorithm.kl_placement=reward"],
        ["algorithm.kl_placement=reward", "maxrl", "kl_placement=loss"],
        ["algorithm.kl_placement=loss"],
    ),
    (
        "steps with a penalty on tokens",
        ["algorithm.advantage=process", "algorithm.kl_coefficient=0.1"],
        ["algorithm.kl_placement=reward"],
        ["algorithm.kl_placement=reward", "process", "kl_placement=loss"],
        ["algorithm.kl_placement=loss"],
    ),
    (
        "steps with a clipped total",
        ["algorithm.reward_clip=5"],
        ["algorithm.advantage=process"],
        ["algorithm.reward_clip=5", "process", "null"],
        ["algorithm.advantage=process", "algorithm.reward_clip=null"],
    ),
    (
        "a level of steps for whole answers",
        [],
        ["algorithm.reward_level=step"],
        ["algorithm.reward_level=step", "algorithm.advantage=group", "use returns"],
        ["algorithm.reward_level=step", "algorithm.advantage=returns"],
    ),
    (
        "token surrogate of sequences",
        ["algorithm.ratio_level=sequence"],
        ["algorithm.policy_loss=gmpo"],
        ["algorithm.ratio_level=sequence", "policy_loss=gmpo", "policy_loss=clip"],
        ["algorithm.ratio_level=token"],
    ),
    (
        "dual clip without a clip",
        ["algorithm.policy_loss=cispo"],
        ["algorithm.dual_clip=3"],
        ["algorithm.dual_clip=3", "policy_loss=cispo"],
        ["algorithm.policy_loss=clip"],
    ),
    (
        "dual clip inside the clip",
        ["algorithm.clip_ratio_high=0.3"],
        ["algorithm.dual_clip=1.2"],
        ["algorithm.dual_clip=1.2", "1.3"],
        ["algorithm.dual_clip=1.5"],
    ),
    (
        "covariance bounds",
        ["algorithm.policy_loss=clip_cov"],
        ["algorithm.covariance_low=6"],
        ["algorithm.covariance_low=6", "algorithm.covariance_high=5"],
        ["algorithm.covariance_high=7"],
    ),
    (
        "filter without room",
        ["algorithm.correction_filter=token"],
        ["algorithm.correction_low=3"],
        ["algorithm.correction_low=3", "algorithm.correction_high=2"],
        ["algorithm.correction_low=0.5"],
    ),
    (
        "rejection without a filter",
        [],
        ["algorithm.correction_reject=true"],
        ["algorithm.correction_reject=true", "correction_filter=none"],
        ["algorithm.correction_filter=geometric"],
    ),
    (
        "gap counted twice",
        ["algorithm.correction_weight=token"],
        ["algorithm.old_policy=generator"],
        ["algorithm.old_policy=generator", "old_policy=learner", "correction_weight=none"],
        ["algorithm.old_policy=learner"],
    ),
    (
        "bootstrap without a critic",
        [],
        ["algorithm.bootstrap_truncated=true"],
        ["algorithm.bootstrap_truncated=true", "advantage=group", "algorithm=ppo"],
        ["algorithm.advantage=gae"],
    ),
    *(
        (
            f"normalised rewards, {name}",
            base,
            ["algorithm.reward_normalization=running"],
            ["algorithm.reward_normalization=running", *said],
            repair,
        )
        for name, base, said, repair in (
            (
                "undone",
                [],
                ["normalize_by_std=true", "the first to none or the second to false"],
                ["algorithm.reward_normalization=batch", "algorithm.normalize_by_std=false"],
            ),
            (
                "of steps",
                ["algorithm=process"],
                ["advantage=process", "in the reward function"],
                ["algorithm.reward_normalization=none"],
            ),
            (
                "of steps with a critic",
                ["algorithm=ppo", "algorithm.reward_level=step"],
                ["reward_level=step"],
                ["algorithm.reward_normalization=none"],
            ),
            (
                "negative",
                ["algorithm=maxrl"],
                ["advantage=maxrl", "negative"],
                ["algorithm.reward_normalization=none"],
            ),
            (
                "moving mean",
                ["algorithm=reinforce"],
                ["advantage=baseline", "advantage=returns"],
                ["algorithm.reward_normalization=running", "algorithm.advantage=returns"],
            ),
        )
    ),
    (
        "whitening per task alone",
        [],
        ["algorithm.whiten_per_task=true"],
        ["algorithm.whiten_per_task=true", "whiten_advantages=false"],
        ["algorithm.whiten_advantages=true"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)
