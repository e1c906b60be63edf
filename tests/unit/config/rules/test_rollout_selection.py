"""Rules of rollout selection and of mixed texts."""

from __future__ import annotations

from rlhf_ray.config.load import load_config
from tests.unit.config.rules.cases import check_broken_values, check_rule, each

MIXED = ["algorithm.ptx_coefficient=0.1", "texts.path=texts.jsonl"]

EARLY = ["algorithm.kl_coefficient=0.1", "reference.prompts_at_once=2"]

CASES = [
    (
        "early scores without a reference",
        ["algorithm.kl_coefficient=0"],
        ["reference.prompts_at_once=2"],
        ["reference.prompts_at_once=2", "no reference with ranks of its own"],
        ["reference.prompts_at_once=2", "algorithm.kl_coefficient=0.1"],
    ),
    (
        "early scores and over-sampling",
        EARLY,
        ["rollout_selection.oversample=1.5"],
        ["reference.prompts_at_once=2", "rollout_selection.oversample"],
        ["rollout_selection.oversample=1.5", "reference.prompts_at_once=0"],
    ),
    (
        "early scores and dynamic sampling",
        EARLY,
        ["rollout_selection.dynamic=true"],
        ["reference.prompts_at_once=2", "rollout_selection.dynamic"],
        ["rollout_selection.dynamic=true", "reference.prompts_at_once=0"],
    ),
    (
        "early scores and replay",
        EARLY,
        ["rollout_selection.replay_groups_per_step=2"],
        ["reference.prompts_at_once=2", "rollout_selection.replay_groups_per_step"],
        ["rollout_selection.replay_groups_per_step=2", "reference.prompts_at_once=0"],
    ),
    (
        "early scores of stale batches by a reference that moves",
        EARLY,
        ["algorithm.reference_every=2", "max_staleness=1"],
        ["reference.prompts_at_once=2", "algorithm.reference_every"],
        ["algorithm.reference_every=2", "max_staleness=0"],
    ),
    (
        "dynamic sampling of groups of one",
        ["algorithm=ppo", "samples_per_prompt=1"],
        ["rollout_selection.dynamic=true"],
        ["rollout_selection.dynamic=true", "samples_per_prompt=1", "at least 2"],
        ["rollout_selection.dynamic=true", "samples_per_prompt=2"],
    ),
    (
        "over-sampling and exact resume",
        ["checkpoint.every_steps=5"],
        ["rollout_selection.oversample=1.5"],
        [
            "rollout_selection.oversample=1.5",
            "checkpoint.every_steps=5",
            "rollout_selection.exact_resume=false",
        ],
        ["rollout_selection.oversample=1.5", "rollout_selection.exact_resume=false"],
    ),
    (
        "over-long buffer",
        [],
        ["rollout_selection.overlong_buffer_tokens=6"],
        ["rollout_selection.overlong_buffer_tokens=6", "max_response_tokens=6", "at most 5"],
        ["rollout_selection.overlong_buffer_tokens=5"],
    ),
    (
        "nothing ends by itself",
        ["generation.ignore_eos=true"],
        ["rollout_selection.overlong_filter=true"],
        ["rollout_selection.overlong_filter=true", "generation.ignore_eos=true"],
        ["rollout_selection.overlong_filter=false"],
    ),
    (
        "negative task weight",
        ["data.source_column=task"],
        ["rollout_selection.task_weights.sums=-1"],
        ["rollout_selection.task_weights.sums=-1.0", "at least 0"],
        ["rollout_selection.task_weights.sums=0"],
    ),
    (
        "task weights without tasks",
        [],
        ["rollout_selection.task_weights={sums:2}"],
        ["rollout_selection.task_weights={'sums': 2.0}", "data.source_column"],
        ["rollout_selection.task_weights={sums:2}", "data.source_column=task"],
    ),
    (
        "replay and several steps",
        ["algorithm.num_epochs=2"],
        ["rollout_selection.replay_groups_per_step=2"],
        ["rollout_selection.replay_groups_per_step=2", "algorithm.num_epochs=2", "set both to 1"],
        ["rollout_selection.replay_groups_per_step=2", "algorithm.num_epochs=1"],
    ),
    (
        "replay of what is too old",
        ["max_staleness=4"],
        ["rollout_selection.replay_groups_per_step=2"],
        ["rollout_selection.replay_max_staleness=4", "max_staleness=4", "at least 5"],
        ["rollout_selection.replay_groups_per_step=2", "rollout_selection.replay_max_staleness=5"],
    ),
    (
        "replay of more than there is",
        [],
        ["rollout_selection.replay_groups_per_step=65"],
        ["rollout_selection.replay_capacity=64", "rollout_selection.replay_groups_per_step=65"],
        ["rollout_selection.replay_groups_per_step=65", "rollout_selection.replay_capacity=65"],
    ),
    (
        "coefficient without texts",
        [],
        ["algorithm.ptx_coefficient=0.5"],
        ["texts.path is empty", "algorithm.ptx_coefficient=0.5", "as in texts.path=texts.jsonl"],
        ["algorithm.ptx_coefficient=0.5", "texts.path=texts.jsonl"],
    ),
    (
        "texts without a coefficient",
        [],
        ["texts.path=a.jsonl"],
        ["texts.path=a.jsonl", "nothing would be learnt", "as in algorithm.ptx_coefficient=0.1"],
        ["texts.path=a.jsonl", "algorithm.ptx_coefficient=0.1"],
    ),
    (
        "text over the budget",
        MIXED,
        ["texts.max_tokens=9000"],
        ["texts.max_tokens=9000", "training.max_tokens_per_micro_batch=8192", "at most 8192"],
        ["texts.max_tokens=9000", "training.max_tokens_per_micro_batch=9000"],
    ),
    (
        "ranks without a text",
        [*MIXED, "training.num_ranks=4"],
        ["texts.texts_per_step=3"],
        ["texts.texts_per_step=3", "training.num_ranks=4", "raise it to at least 4"],
        ["texts.texts_per_step=4"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)


def test_texts_that_are_not_read_are_not_held_to_rules():
    load_config(["recipe=demo", "texts.max_tokens=9000", "texts.texts_per_step=1"])
