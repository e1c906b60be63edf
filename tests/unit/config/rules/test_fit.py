"""Rules of learning from examples."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.rules.table import cross_field_problems
from tests.unit.config.rules.cases import check_broken_values, check_rule, each

FIT = ["stage=sft", "examples.path=rows.jsonl"]
REWARD_MODEL = ["stage=reward_model", "examples.path=rows.jsonl"]

CASES = [
    (
        "no model to learn with",
        FIT,
        ["model.path="],
        ["model.path is empty", "stage=pretrain"],
        ["model.path=a/b"],
    ),
    (
        "no examples",
        FIT,
        ["examples.path="],
        ["examples.path is empty", "stage=sft", "stage=prepare_data"],
        ["examples.path=rows.jsonl"],
    ),
    (
        "random weights in a later stage",
        FIT,
        ["model.random_weights=true"],
        ["model.random_weights=true", "stage=sft", "use stage=pretrain"],
        ["model.random_weights=true", "stage=pretrain"],
    ),
    (
        "a warm-up as long as the run",
        FIT,
        ["fit.max_steps=10", "training.warmup_steps=10"],
        ["training.warmup_steps=10", "at most 10 optimiser steps", "lower it to at most 9"],
        ["fit.max_steps=10", "training.warmup_steps=9"],
    ),
    (
        "budget of examples",
        FIT,
        ["training.max_tokens_per_micro_batch=99", "examples.max_tokens=100"],
        ["training.max_tokens_per_micro_batch=99", "examples.max_tokens", "at least 100"],
        ["training.max_tokens_per_micro_batch=100", "examples.max_tokens=100"],
    ),
    (
        "ranks without examples",
        FIT,
        ["training.num_ranks=17"],
        ["training.num_ranks=17", "fit.batch_size", "at most 16 ranks"],
        ["training.num_ranks=17", "fit.batch_size=17"],
    ),
    (
        "patience without evaluations",
        FIT,
        ["fit.patience=2"],
        ["fit.patience=2", "fit.eval_every=0"],
        ["fit.patience=2", "fit.eval_every=5"],
    ),
    (
        "patience without held-out rows",
        [*FIT, "fit.eval_every=5"],
        ["fit.patience=2", "examples.eval_share=0"],
        ["fit.patience=2", "examples.eval_share=0", "examples.eval_path"],
        ["fit.patience=2", "examples.eval_share=0", "examples.eval_path=held_out.jsonl"],
    ),
    (
        "budget of pairs",
        [*REWARD_MODEL, "examples.max_tokens=100"],
        ["training.max_tokens_per_micro_batch=199"],
        ["training.max_tokens_per_micro_batch=199", "examples.max_tokens", "at least 200"],
        ["training.max_tokens_per_micro_batch=200"],
    ),
    (
        "average of a reward model",
        REWARD_MODEL,
        ["training.ema_decay=0.9"],
        ["training.ema_decay=0.9", "stage=reward_model", "to null"],
        ["training.ema_decay=null"],
    ),
    (
        "held out in two ways",
        [*FIT, "examples.path=a.jsonl", "examples.eval_path=b.jsonl"],
        ["examples.eval_share=0.1"],
        ["examples.eval_share=0.1", "examples.eval_path=b.jsonl", "to null"],
        ["examples.eval_share=null"],
    ),
    (
        "split and share",
        [*FIT, "examples.path=a/b", "examples.eval_split=test"],
        ["examples.eval_share=0.1"],
        ["examples.eval_share=0.1", "examples.eval_split=test"],
        ["examples.eval_share=0"],
    ),
    (
        "held out what is trained on",
        [*FIT, "examples.path=a.jsonl"],
        ["examples.eval_path=a.jsonl"],
        ["examples.eval_path=a.jsonl", "trained on", "examples.eval_share"],
        ["examples.eval_path=b.jsonl"],
    ),
    (
        "held out the split that is trained on",
        [*FIT, "examples.path=a/b", "examples.split=all"],
        ["examples.eval_split=all"],
        ["examples.eval_split=all", "trained on"],
        ["examples.eval_path=a/b", "examples.eval_split=test"],
    ),
    (
        "columns that are one",
        [*REWARD_MODEL, "examples.chosen_column=best"],
        ["examples.rejected_column=best"],
        ["examples.rejected_column=best", "also examples.chosen_column"],
        ["examples.rejected_column=worst"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)


def test_rules_of_idle_roles_are_skipped_when_learning_from_examples():
    idle = ["algorithm=ppo", "critic.max_tokens_per_micro_batch=1", "reference.zero_stage=2"]
    idle += ["data.path=", "reward.functions=[]"]
    assert cross_field_problems(read_config(["recipe=demo", *FIT, *idle])) == []
    with pytest.raises(ConfigError, match=r"training\.offload_optimizer=true"):
        load_config(["recipe=demo", *FIT, "training.offload_optimizer=true"])
    with pytest.raises(ConfigError, match=r"output_dir=s3://a"):
        load_config(["recipe=demo", *FIT, "output_dir=s3://a"])
