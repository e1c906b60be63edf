"""The inputs of a stage that learns from examples, and how such stages differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlhf_ray.batching.rank_plan import RankPlan, rank_plan
from rlhf_ray.cluster.roles.base import Role
from rlhf_ray.cluster.roles.fit import OfflineActor, OfflineSettings, offline_role
from rlhf_ray.cluster.systems.fit import FitSystem
from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.config.groups.fit import FitConfig
from rlhf_ray.config.groups.runtime import CheckpointConfig, DeadlineConfig, ObserveConfig
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import ExampleSet
from rlhf_ray.driver.fit.steps import count_steps
from rlhf_ray.driver.resume_changes import RunSettings
from rlhf_ray.driver.resume_choice import Resume
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.output import RunOutput
from rlhf_ray.stages.template_time import KEY as TEMPLATE_TIME
from rlhf_ray.stages.trained_part import trained_identity

T = TypeVar("T", LabelledTokens, Ranking, Feedback)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitInputs:
    """A request that was read and checked.

    Attributes:
        stage: name of the stage.
        model_path: folder of the model that is trained.
        plan: how rows are spread over the ranks.
        role: the ranks.
        kept_settings: of this run, as its checkpoints keep them.
        resume_from: the checkpoint that it goes on from, or None.
        dtype, attention: for a stage that scores its rows before training.
    """

    stage: str
    run_name: str
    model_path: str
    plan: RankPlan
    role: Role
    seed: int
    fit: FitConfig
    examples: ExamplesConfig
    checkpoint: CheckpointConfig
    deadlines: DeadlineConfig
    observe: ObserveConfig
    kept_settings: RunSettings
    resume_from: Resume | None
    dtype: str
    attention: str


def _as_read(_: FitInputs, examples: Any, _system: FitSystem, _output: RunOutput) -> Any:
    """The rows go to the ranks as they were read."""
    return examples


@dataclass(frozen=True, kw_only=True, slots=True)
class FitStage(Generic[T]):
    """The parts in which a stage differs from the others.

    Attributes:
        load: reads the rows: `(config.examples, tokenizer, seed=...)`.
        prepare: the rows that are spread, once the ranks hold the weights that they start from
            and before they go on from a checkpoint; as many as were read, in the same order.
        spread: the rows of one step, or all held-out ones, to the samples of every rank.
        actor_class: of `cluster.roles.fit`: the actors of the ranks.
        is_generative: the result writes text, and must know where an answer ends.
    """

    load: Callable[..., ExampleSet[T]]
    spread: Callable[[Sequence[Any], RankPlan], Sequence[Any]]
    actor_class: type[OfflineActor]
    is_generative: bool = True
    prepare: Callable[[FitInputs, ExampleSet[T], FitSystem, RunOutput], ExampleSet[Any]] = _as_read


def fit_inputs(
    config: Config,
    stage: FitStage[T],
    num_steps: int,
    *,
    kept_settings: RunSettings,
    resume_from: Resume | None,
) -> FitInputs:
    settings = OfflineSettings(
        training=config.training,
        model=config.model_of_ranks,
        total_optimizer_steps=num_steps,
        seed=config.seed,
        timeout_s=config.collective_timeout_s,
        preference=config.preference,
        reward_model=config.reward_model,
    )
    return FitInputs(
        stage=config.stage.name,
        run_name=config.recipe or Path(config.output_dir).name,
        model_path=config.model.path,
        plan=rank_plan(config.training),
        role=offline_role(settings, stage.actor_class),
        seed=config.seed,
        fit=config.fit,
        examples=config.examples,
        checkpoint=config.checkpoint,
        deadlines=config.deadlines,
        observe=config.observe,
        kept_settings=kept_settings,
        resume_from=resume_from,
        dtype=config.training.dtype,
        attention=config.model.attention,
    )


def num_optimizer_steps(fit: FitConfig, examples: ExampleSet[Any]) -> int:
    in_all = count_steps(len(examples.train), fit.batch_size, fit.num_epochs)
    return in_all if fit.max_steps is None else min(in_all, fit.max_steps)


def fit_identity(config: Config) -> dict[str, Any]:
    """Settings that must match when a run is resumed; the rows are compared later."""
    return {
        "stage": config.stage.name,
        "seed": config.seed,
        "model.path": config.model.path,
        TEMPLATE_TIME: config.model.template_time,
        "model.random_weights": config.model.random_weights,
        "examples.path": config.examples.path,
        "fit.batch_size": config.fit.batch_size,
        **trained_identity(config.training, config.critic),
    }
