"""The rollout pipeline of a run: its prompts, its settings, and what they ask of the data."""

from __future__ import annotations

import difflib

from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.data.prompts.curriculum import CurriculumSettings, CurriculumStream
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline

_MAX_SHOWN = 8


def make_pipeline(config: Config, system: System, prompts: PromptSet) -> RolloutPipeline:
    """The pipeline over a started system."""
    return RolloutPipeline(
        prompts=make_stream(config, prompts),
        generators=system.generators,
        rewards=system.rewards,
        watch=system.supervisor,
        failure_budget=FailureBudget(config.reward.max_failure_rate),
        settings=PipelineSettings(
            num_steps=config.num_steps,
            prompts_per_step=config.prompts_per_step,
            samples_per_prompt=config.samples_per_prompt,
            num_greedy=config.algorithm.num_greedy,
            max_staleness=config.max_staleness,
            generate_timeout_s=config.deadlines.generate_s,
            sampling=config.sampling,
        ),
    )


def make_stream(config: Config, prompts: PromptSet) -> PromptStream | CurriculumStream:
    """Prompts in the order of the seed, thinned out by a curriculum where there is one."""
    stream = PromptStream(prompts, seed=config.seed, shuffle=config.data.shuffle)
    sampling = config.sampling
    if not sampling.curriculum:
        return stream
    settings = CurriculumSettings(
        target=sampling.curriculum_target,
        min_weight=sampling.curriculum_min_weight,
        recency=sampling.curriculum_recency,
        success_reward=sampling.success_reward,
    )
    return CurriculumStream(stream, settings, seed=config.seed)


def check_tasks(config: Config, prompts: PromptSet) -> None:
    """Refuse a weight for a task that no prompt belongs to.

    Raises:
        RequestError: names it, and the tasks that there are.
    """
    tasks = sorted({prompt.source for prompt in prompts.prompts})
    for name in config.sampling.task_weights:
        if name in tasks:
            continue
        close = difflib.get_close_matches(name, tasks, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        shown = ", ".join(tasks[:_MAX_SHOWN]) + (", ..." if len(tasks) > _MAX_SHOWN else "")
        raise RequestError(
            f"sampling.task_weights.{name}: no prompt has {name} in data.source_column="
            f"{config.data.source_column}; {hint}There are: {shown}"
        )
