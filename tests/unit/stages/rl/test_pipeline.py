"""The configuration of rollout selection in a run."""

from __future__ import annotations

import dataclasses

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.config.load import load_config
from rlhf_ray.data.prompts.curriculum import CurriculumStream
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.stages.rl.inputs import check_tasks
from rlhf_ray.stages.rl.parts import make_stream
from rlhf_ray.stages.rl.settings import rl_settings
from rlhf_ray.testing.fakes import make_prompt

WEIGHTS = ["recipe=demo", "data.source_column=task"]
CORRECTED = ["algorithm.correction_weight=token"]


def check_weights(overrides: list[str], prompts: PromptSet) -> None:
    config = load_config(overrides)
    check_tasks(config.rollout_selection.task_weights, prompts, column=config.data.source_column)


def make_set(*tasks: str) -> PromptSet:
    prompts = tuple(
        dataclasses.replace(make_prompt(row), prompt_id=f"r{row}", source=task)
        for row, task in enumerate(tasks)
    )
    return PromptSet(prompts=prompts, skipped=(), left_out_columns=(), fingerprint="f")


def test_a_curriculum_is_made_where_it_is_asked_for():
    prompts = make_set("a", "a")
    assert isinstance(make_stream(rl_settings(load_config(["recipe=demo"])), prompts), PromptStream)
    asked = load_config(["recipe=demo", "rollout_selection=curriculum"])
    assert isinstance(make_stream(rl_settings(asked), prompts), CurriculumStream)


def test_a_weight_is_for_a_task_that_there_is():
    prompts = make_set("sums", "words", "sums")
    check_weights([*WEIGHTS, "rollout_selection.task_weights={sums:2,words:0}"], prompts)
    with pytest.raises(RequestError, match=r"word: no prompt .*did you mean words\? There are: s"):
        check_weights([*WEIGHTS, "rollout_selection.task_weights={sums:2,word:1}"], prompts)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], OldLogprobsFrom.LEARNER_IN_UPDATE),
        (
            ["rollout_selection.dynamic=true", "rollout_selection.oversample=2"],
            OldLogprobsFrom.LEARNER_IN_UPDATE,
        ),
        (["rollout_selection.replay_groups_per_step=1"], OldLogprobsFrom.GENERATOR),
        (["max_staleness=1"], OldLogprobsFrom.GENERATOR),
        (["max_staleness=1", "algorithm.old_policy=learner"], OldLogprobsFrom.LEARNER_IN_UPDATE),
        (["max_staleness=1", *CORRECTED], OldLogprobsFrom.LEARNER_BEFORE_UPDATE),
        (CORRECTED, OldLogprobsFrom.LEARNER_BEFORE_UPDATE),
        (["algorithm.num_epochs=2"], OldLogprobsFrom.LEARNER_BEFORE_UPDATE),
        (["algorithm.old_policy=generator"], OldLogprobsFrom.GENERATOR),
    ],
)
def test_the_source_of_the_old_logprobs_follows_staleness_and_correction(overrides, expected):
    assert load_config(["recipe=demo", *overrides]).old_logprobs_from is expected
