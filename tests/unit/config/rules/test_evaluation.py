"""Rules of evaluation."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.rules.table import cross_field_problems
from tests.unit.config.rules.cases import (
    EVALUATE,
    WHILE_TRAINING,
    check_broken_values,
    check_rule,
    each,
)

CASES = [
    (
        "nothing to evaluate",
        EVALUATE,
        ["evaluation.models={}"],
        ["evaluation.models is empty", "evaluation.models.sft="],
        ["evaluation.models={rl: c/d}"],
    ),
    (
        "a model without a path",
        EVALUATE,
        ["evaluation.models.rl="],
        ["evaluation.models.rl is empty", "folder or a hub model"],
        ["evaluation.models.rl=c/d"],
    ),
    (
        "a baseline that is not there",
        EVALUATE,
        ["evaluation.baseline=base"],
        ["evaluation.baseline=base", "choose one of sft"],
        ["evaluation.baseline=sft"],
    ),
    (
        "nothing to ask",
        EVALUATE,
        ["data.path="],
        ["data.path is empty", "held-out prompts"],
        ["data.path=", "evaluation.path=held_out.jsonl"],
    ),
    (
        "nothing that scores",
        EVALUATE,
        ["reward.functions=[]"],
        ["reward.functions is empty", "scored as in stage=rl"],
        ["reward.functions=[length]"],
    ),
    (
        "no answers",
        EVALUATE,
        ["evaluation.greedy=false"],
        ["evaluation.samples=0", "no answer to evaluate"],
        ["evaluation.greedy=false", "evaluation.samples=1"],
    ),
    (
        "no answers while training",
        WHILE_TRAINING,
        ["evaluation.greedy=false"],
        ["evaluation.samples=0", "no answer to evaluate"],
        ["evaluation.greedy=false", "evaluation.every=0", "evaluation.path=null"],
    ),
    (
        "more choices than answers",
        [*EVALUATE, "evaluation.samples=4"],
        ["evaluation.pass_at_k=[1,5]"],
        ["evaluation.pass_at_k=[1, 5]", "evaluation.samples=4", "to at least 5"],
        ["evaluation.pass_at_k=[1,4]"],
    ),
    (
        "no choice at all",
        [*EVALUATE, "evaluation.samples=4"],
        ["evaluation.pass_at_k=[0]"],
        ["evaluation.pass_at_k=[0]: k=0", "evaluation.samples=4", "remove 0"],
        ["evaluation.pass_at_k=[1]"],
    ),
    (
        "wins by what is no part",
        [*EVALUATE, "reward.model.path=a/b"],
        ["evaluation.win_by=taste"],
        ["evaluation.win_by=taste", "reward, exact_match, model"],
        ["evaluation.win_by=model"],
    ),
    (
        "success by what is no part",
        WHILE_TRAINING,
        ["evaluation.success_by=length"],
        ["evaluation.success_by=length", "reward, exact_match"],
        ["evaluation.success_by=exact_match"],
    ),
    (
        "a divergence of greedy answers",
        [*EVALUATE, "reference.path=a/b"],
        ["evaluation.kl=k3"],
        ["evaluation.kl=k3", "sampled answers", "evaluation.samples=0"],
        ["evaluation.kl=k3", "evaluation.samples=2"],
    ),
    (
        "a divergence from nothing",
        [*EVALUATE, "evaluation.samples=2"],
        ["evaluation.kl=k1"],
        ["evaluation.kl=k1", "reference.path is null"],
        ["evaluation.kl=k1", "reference.path=a/b"],
    ),
    (
        "a divergence while training without a reference",
        [*WHILE_TRAINING, "evaluation.samples=2", "evaluation.kl=k3"],
        ["algorithm.kl_coefficient=0"],
        ["evaluation.kl=k3", "algorithm.kl_coefficient=0"],
        ["algorithm.kl_coefficient=0", "evaluation.kl=none"],
    ),
    (
        "a divergence from a policy that is away",
        [*WHILE_TRAINING, "evaluation.samples=2", "evaluation.kl=k3", "placement=colocated"],
        ["training.lora.r=4"],
        ["evaluation.kl=k3", "without its adapter"],
        ["training.lora.r=4", "reference.source=own"],
    ),
    (
        "demonstrations that an engine without chunks cannot hold",
        [
            *EVALUATE,
            "examples.eval_path=rows.jsonl",
            "generation.extra_engine_args.enable_chunked_prefill=false",
        ],
        ["examples.max_tokens=4096"],
        ["generation.max_num_batched_tokens=4096", "at least 4097"],
        ["examples.max_tokens=4095"],
    ),
    (
        "a template that the harness does not know",
        [*EVALUATE, "evaluation.lm_eval_tasks=[sums]", "model.chat_template=a.jinja"],
        ["evaluation.lm_eval_chat=true"],
        ["model.chat_template=a.jinja", "evaluation.lm_eval_chat to false"],
        ["evaluation.lm_eval_chat=true", "model.chat_template=null"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)


def test_an_evaluation_is_not_held_to_rules_of_training():
    idle = ["algorithm=ppo", "critic.max_tokens_per_micro_batch=1", "samples_per_prompt=1"]
    idle += ["training.zero_stage=0", "training.offload_optimizer=true", "model.path="]
    idle += ["placement=colocated", "max_staleness=1"]
    assert cross_field_problems(read_config(["recipe=demo", *EVALUATE, *idle])) == []
    measured = ["evaluation.kl=k1", "evaluation.samples=1", "reference.path=a/b"]
    with pytest.raises(ConfigError, match=r"reference\.zero_stage=2"):
        load_config(["recipe=demo", *EVALUATE, *measured, "reference.zero_stage=2"])
