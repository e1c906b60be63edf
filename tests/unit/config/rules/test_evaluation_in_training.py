"""Rules of evaluation during training."""

from __future__ import annotations

from rlhf_ray.config.load import load_config
from tests.unit.config.rules.cases import WHILE_TRAINING, check_broken_values, check_rule, each

CASES = [
    (
        "prompts that are trained on",
        WHILE_TRAINING,
        ["evaluation.path=null"],
        ["evaluation.every=2", "trained on", "evaluation.split"],
        ["evaluation.path=null", "evaluation.split=test"],
    ),
    (
        "the best of what is not measured",
        [*WHILE_TRAINING, "evaluation.samples=2", "evaluation.pass_at_k=[2]"],
        ["evaluation.best_metric=evaluation/greedy/pass_at_2"],
        ["is not measured", "did you mean evaluation/sampled/pass_at_2?"],
        ["evaluation.best_metric=evaluation/sampled/pass_at_2"],
    ),
    (
        "greedy answers in two places",
        [*WHILE_TRAINING, "algorithm=remax", "samples_per_prompt=2"],
        ["evaluation.samples=3"],
        ["evaluation.samples=3", "algorithm.advantage=remax", "samples_per_prompt=2"],
        ["evaluation.samples=2"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)


def test_rules_are_skipped_without_evaluation_in_training():
    load_config(["recipe=demo", "evaluation.pass_at_k=[9]", "evaluation.win_by=nothing"])
    load_config(["recipe=demo", "evaluation.greedy=false", "evaluation.kl=k3"])
