"""Rules of the batch."""

from __future__ import annotations

from tests.unit.config.rules.cases import check_broken_values, check_rule, each

CASES = [
    (
        "groups of ranks that do not divide the ranks",
        ["training.num_ranks=6"],
        ["training.sequence_parallel_size=4"],
        ["training.sequence_parallel_size=4", "training.num_ranks=6", "use 8 ranks"],
        ["training.sequence_parallel_size=3"],
    ),
    (
        "groups of ranks and eager attention",
        ["reference.num_ranks=2", "reference.sequence_parallel_size=2"],
        ["model.attention=eager"],
        ["reference.sequence_parallel_size=2", "model.attention=sdpa"],
        ["model.attention=sdpa"],
    ),
    (
        "groups of ranks and packed rows",
        ["training.num_ranks=2", "training.sequence_parallel_size=2"],
        ["training.layout=packed"],
        ["training.sequence_parallel_size=2", "training.layout=auto"],
        ["training.layout=auto"],
    ),
    (
        "groups of ranks that hold whole reward models",
        ["reward.model.path=a/b", "reward.model.num_ranks=2", "reward.model.zero_stage=3"],
        ["reward.model.sequence_parallel_size=2", "reward.model.zero_stage=0"],
        ["reward.model.sequence_parallel_size=2", "use zero_stage 3"],
        ["reward.model.sequence_parallel_size=2", "reward.model.zero_stage=3"],
    ),
    (
        "groups of ranks beside several engines",
        ["placement=colocated", "training.num_ranks=4", "generation.num_engines=4"],
        ["training.sequence_parallel_size=2"],
        ["training.sequence_parallel_size=2", "generation.num_engines=4", "disaggregated"],
        ["training.sequence_parallel_size=2", "generation.num_engines=2"],
    ),
    (
        "reward model's budget",
        ["reward.model.path=a/b"],
        ["reward.model.max_tokens_per_micro_batch=37"],
        ["reward.model.max_tokens_per_micro_batch=37", "at least 38"],
        ["reward.model.max_tokens_per_micro_batch=38"],
    ),
    (
        "learner budget",
        [],
        ["training.max_tokens_per_micro_batch=37"],
        ["training.max_tokens_per_micro_batch=37", "32", "6", "at least 38"],
        ["training.max_tokens_per_micro_batch=38"],
    ),
    (
        "critic budget",
        ["algorithm=ppo"],
        ["critic.max_tokens_per_micro_batch=37"],
        ["critic.max_tokens_per_micro_batch=37", "at least 38"],
        ["critic.max_tokens_per_micro_batch=38"],
    ),
    (
        "reference budget",
        [],
        ["reference.max_tokens_per_micro_batch=37"],
        ["reference.max_tokens_per_micro_batch=37", "at least 38"],
        ["reference.max_tokens_per_micro_batch=38"],
    ),
    (
        "a probe of one token",
        ["data.max_prompt_tokens=2", "generation.max_response_tokens=1"],
        ["data.max_prompt_tokens=1"],
        ["generation.max_response_tokens=1", "data.max_prompt_tokens=1", "needs 3"],
        ["generation.max_response_tokens=2"],
    ),
    (
        "a penalty that would do nothing",
        ["algorithm=kl_cov"],
        ["algorithm.num_mini_batches=1"],
        ["policy_loss=kl_cov", "only optimiser step", "num_mini_batches"],
        ["algorithm.num_mini_batches=2"],
    ),
    (
        "mini-batches",
        [],
        ["algorithm.num_mini_batches=129"],
        ["algorithm.num_mini_batches=129", "128 samples", "prompts_per_step=16"],
        ["algorithm.num_mini_batches=128"],
    ),
    (
        "learner ranks",
        ["algorithm.num_mini_batches=32"],
        ["training.num_ranks=5"],
        ["training.num_ranks=5", "only 4 samples", "at most 4"],
        ["training.num_ranks=4"],
    ),
    (
        "critic ranks",
        ["algorithm=ppo", "algorithm.num_mini_batches=32"],
        ["critic.num_ranks=5"],
        ["critic.num_ranks=5", "at most 4"],
        ["critic.num_ranks=4"],
    ),
    (
        "reference ranks",
        [],
        ["reference.num_ranks=129"],
        ["reference.num_ranks=129", "at most 128"],
        ["reference.num_ranks=128"],
    ),
    (
        "engines",
        ["max_staleness=1"],
        ["generation.num_engines=33"],
        ["generation.num_engines=33", "at most 32 prompts"],
        ["generation.num_engines=32"],
    ),
    (
        "group of one",
        [],
        ["samples_per_prompt=1"],
        ["samples_per_prompt=1", "at least 2", "algorithm=ppo"],
        ["samples_per_prompt=2"],
    ),
    (
        "critic steps without a critic",
        [],
        ["algorithm.critic_warmup_steps=3"],
        ["algorithm.critic_warmup_steps=3", "advantage=group", "algorithm=ppo"],
        ["algorithm.critic_warmup_steps=0"],
    ),
    (
        "steps of one sample",
        [],
        ["algorithm.advantage=process", "samples_per_prompt=1"],
        ["samples_per_prompt=1", "algorithm.advantage=process", "algorithm=ppo"],
        ["samples_per_prompt=2"],
    ),
    (
        "group of one, leave one out",
        [],
        ["algorithm.advantage=rloo", "samples_per_prompt=1"],
        ["samples_per_prompt=1", "algorithm.advantage=rloo", "algorithm=ppo"],
        ["samples_per_prompt=2"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)
