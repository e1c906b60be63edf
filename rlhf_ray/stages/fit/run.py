"""The stages that learn from examples: rows, ranks, loop, result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlhf_ray.batching.rank_plan import RankPlan, rank_plan
from rlhf_ray.cluster.resource_plan import describe
from rlhf_ray.cluster.roles.base import Role
from rlhf_ray.cluster.roles.fit import OfflineActor, OfflineSettings, offline_role
from rlhf_ray.cluster.roles.run_roles import collective_timeout_s, model_of_ranks
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.fit import FitSystem, started_fit
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.config.groups.fit import FitConfig
from rlhf_ray.config.groups.runtime import CheckpointConfig, DeadlineConfig, ObserveConfig
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import ExampleSet
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.checkpoints import Checkpoints
from rlhf_ray.driver.fit.checkpoints import FitCheckpoints
from rlhf_ray.driver.fit.held_out import NOTHING_EVALUATED, HeldOut, NoHeldOut
from rlhf_ray.driver.fit.loop import FitLoop, FitSettings, FitState, fit
from rlhf_ray.driver.fit.steps import FitSteps, count_steps
from rlhf_ray.driver.run_checkpoints import checkpoint_to_resume
from rlhf_ray.driver.run_log import FitLog
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.facts import FIT_FACTS
from rlhf_ray.observe.fit_report import fit_table, summarize_fit, write_fit_summary
from rlhf_ray.observe.metrics import make_writer, read_metrics
from rlhf_ray.observe.progress import Progress
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.inputs import check_inputs, check_warmup
from rlhf_ray.stages.output import RunOutput, opened_output
from rlhf_ray.stages.stage import resource_plan
from rlhf_ray.stages.trained_part import check_trained, split_off_adapter, trained_identity

T = TypeVar("T", LabelledTokens, Ranking, Feedback)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitInputs:
    """A request that was read and checked.

    Attributes:
        stage: name of the stage.
        model_path: folder of the model that is trained.
        plan: how rows are spread over the ranks.
        role: the ranks.
        identity: settings that must match when a run is resumed.
        resume_from: checkpoint folder, or None.
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
    identity: dict[str, Any]
    resume_from: Path | None
    dtype: str
    attention: str


def _as_read(_: FitInputs, examples: Any, _system: FitSystem, _output: RunOutput) -> Any:
    """The rows go to the ranks as they were read."""
    return examples


@dataclass(frozen=True, kw_only=True, slots=True)
class FitStage(Generic[T]):
    """How a stage differs from the others.

    Attributes:
        load: reads the rows: `(config.examples, tokenizer, seed=...)`.
        prepare: the rows that are spread, once the ranks hold the weights that they start from
            and before they go on from a checkpoint; as many as were read, in the same order.
        spread: the rows of one step, or all held-out ones, to the samples of every rank.
        actor_class: of `cluster.roles.fit`: the actors of the ranks.
    """

    load: Callable[..., ExampleSet[T]]
    spread: Callable[[Sequence[Any], RankPlan], Sequence[Any]]
    actor_class: type[OfflineActor]
    prepare: Callable[[FitInputs, ExampleSet[T], FitSystem, RunOutput], ExampleSet[Any]] = _as_read


def run_fit(config: Config, stage: FitStage[T]) -> int:
    """Learn from examples.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    identity = _identity(config)
    resume_from = checkpoint_to_resume(Path(config.output_dir), config.resume, identity)
    check_inputs(config)
    with opened_output(config, num_steps=0, facts=FIT_FACTS) as output:
        progress = output.progress
        plan = resource_plan(config)
        progress.message(f"{render_rows(batch_table(config))}\n{describe(plan)}")
        progress.phase("model")
        path = resolve_model_path(config.model.path, seed=config.seed, report=progress.message)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
        check_trained(config)
        progress.phase("examples")
        examples = stage.load(config.examples, load_tokenizer(config.model), seed=config.seed)
        num_steps = _count_steps(config.fit, examples)
        progress.message(f"{examples.describe()}\n{num_steps} optimiser steps")
        check_warmup(config, num_steps)
        progress.expect(num_steps)
        progress.phase("start")
        inputs = _inputs(config, stage, num_steps, identity=identity, resume_from=resume_from)
        with (
            connected(dashboard=config.observe.dashboard),
            started_fit(
                inputs.role, plan, placement=config.placement, deadlines=config.deadlines
            ) as system,
        ):
            ready = stage.prepare(inputs, examples, system, output)
            run = _Run(
                inputs=inputs,
                output=output.folder,
                system=system,
                steps=_steps(inputs, stage, ready),
                held_out=_held_out(inputs, stage, ready, system),
                progress=progress,
            )
            best_step = _learn(run)
            output.finish(_report(run, num_steps, best_step))
    return 0


def _inputs(
    config: Config,
    stage: FitStage[T],
    num_steps: int,
    *,
    identity: dict[str, Any],
    resume_from: Path | None,
) -> FitInputs:
    settings = OfflineSettings(
        training=config.training,
        model=model_of_ranks(config),
        total_optimizer_steps=num_steps,
        seed=config.seed,
        timeout_s=collective_timeout_s(config.deadlines, evaluates=True),
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
        identity=identity,
        resume_from=resume_from,
        dtype=config.training.dtype,
        attention=config.model.attention,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """The parts of a run once its workers have started."""

    inputs: FitInputs
    output: Path
    system: FitSystem
    steps: FitSteps[Any]
    held_out: HeldOut | NoHeldOut
    progress: Progress


def _learn(run: _Run) -> int | None:
    """Run the loop and write the result; returns the step of the kept model, None for the last."""
    inputs, system, progress = run.inputs, run.system, run.progress
    models = _models(run)
    saver = _saver(run, models)
    state = FitState(step=0, improvement=NOTHING_EVALUATED)
    if inputs.resume_from:
        state = saver.load(inputs.resume_from)
        progress.message(f"resumed after step {state.step} from {inputs.resume_from}")
    else:
        models.start_anew()
    # The line of step 0 has what was measured before the first step.
    last_step = state.step if inputs.resume_from else -1
    with make_writer(
        inputs.observe, run.output, run=inputs.run_name, last_step=last_step
    ) as metrics:
        loop = FitLoop(
            steps=run.steps,
            role=system.ranks,
            held_out=run.held_out,
            models=models,
            watch=system.supervisor,
            observer=FitLog(metrics=metrics, progress=progress),
            saver=saver,
            settings=FitSettings(
                patience=inputs.fit.patience,
                min_improvement=inputs.fit.min_improvement,
                update_timeout_s=inputs.deadlines.update_s,
            ),
        )
        fit(loop, state)
    progress.phase("save")
    models.finish(state.improvement.best_step, run.output / "model")
    split_off_adapter(run.output)
    return state.improvement.best_step or None if inputs.fit.keep_best else None


def _report(run: _Run, planned_steps: int, best_step: int | None) -> str:
    summary = summarize_fit(
        read_metrics(run.output / "metrics.jsonl"),
        stage=run.inputs.stage,
        planned_steps=planned_steps,
        best_step=best_step,
        result=run.output / "model",
    )
    write_fit_summary(run.output, summary)
    return fit_table(summary)


def _count_steps(fit: FitConfig, examples: ExampleSet[Any]) -> int:
    in_all = count_steps(len(examples.train), fit.samples_per_step, fit.num_epochs)
    return in_all if fit.max_steps is None else min(in_all, fit.max_steps)


def _steps(inputs: FitInputs, stage: FitStage[T], examples: ExampleSet[T]) -> FitSteps[T]:
    order = RowOrder(
        "samples",
        num_rows=len(examples.train),
        fingerprint=examples.fingerprint,
        seed=inputs.seed,
        shuffle=inputs.examples.shuffle,
    )
    return FitSteps(
        examples.train,
        order=order,
        spread=lambda rows: stage.spread(rows, inputs.plan),
        samples_per_step=inputs.fit.samples_per_step,
        num_epochs=inputs.fit.num_epochs,
        max_steps=inputs.fit.max_steps,
    )


def _held_out(
    inputs: FitInputs, stage: FitStage[T], examples: ExampleSet[T], system: FitSystem
) -> HeldOut | NoHeldOut:
    if not examples.held_out:
        return NoHeldOut()
    return HeldOut(
        system.ranks,
        system.supervisor,
        stage.spread(examples.held_out, inputs.plan),
        every=inputs.fit.eval_every,
        timeout_s=inputs.deadlines.evaluate_s,
    )


def _models(run: _Run) -> BestModels | LastModel:
    def save(folder: Path) -> None:
        run.system.supervisor.results(
            run.system.ranks.save_model(folder),
            phase="checkpoint",
            timeout_s=run.inputs.deadlines.checkpoint_s,
        )

    if run.inputs.fit.keep_best:
        return BestModels(run.output, save, num_checkpoints=run.inputs.checkpoint.keep_last)
    return LastModel(save)


def _saver(run: _Run, models: BestModels | LastModel) -> FitCheckpoints:
    checkpoint = run.inputs.checkpoint
    return FitCheckpoints(
        checkpoints=Checkpoints(run.output, keep_last=checkpoint.keep_last),
        role=run.system.ranks,
        steps=run.steps,
        models=models,
        watch=run.system.supervisor,
        every_steps=checkpoint.every_steps,
        timeout_s=run.inputs.deadlines.checkpoint_s,
        identity=run.inputs.identity,
    )


def _identity(config: Config) -> dict[str, Any]:
    """Settings that must match when a run is resumed; the rows are compared later."""
    return {
        "stage": config.stage.name,
        "seed": config.seed,
        "model.path": config.model.path,
        "model.random_weights": config.model.random_weights,
        "examples.path": config.examples.path,
        "fit.samples_per_step": config.fit.samples_per_step,
        **trained_identity(config),
    }
