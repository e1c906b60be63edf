"""What the stages that learn from examples have in common: rows, ranks, loop, result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlhf_ray.batching.rank_plan import RankPlan, rank_plan
from rlhf_ray.cluster.resource_plan import describe, plan_resources
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.fit import FitSystem, started_fit
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import ExampleSet
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.checkpoints import Checkpoints
from rlhf_ray.driver.fit.checkpoints import FitCheckpoints
from rlhf_ray.driver.fit.held_out import NOTHING_EVALUATED, HeldOut, NoHeldOut
from rlhf_ray.driver.fit.loop import FitLoop, FitSettings, FitState, fit
from rlhf_ray.driver.fit.steps import FitSteps
from rlhf_ray.driver.run_checkpoints import checkpoint_to_resume
from rlhf_ray.driver.run_log import FitLog
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.facts import FIT_FACTS
from rlhf_ray.observe.fit_report import fit_table, summarize_fit, write_fit_summary
from rlhf_ray.observe.metrics import make_writer, read_metrics
from rlhf_ray.observe.output_capture import quiet_driver
from rlhf_ray.observe.progress import Progress, make_progress
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.inputs import check_inputs, check_warmup
from rlhf_ray.stages.trained_part import check_trained, split_off_adapter, trained_identity

T = TypeVar("T", LabelledTokens, Ranking, Feedback)


def _as_read(_config: Config, examples: Any, _system: FitSystem, _progress: Progress) -> Any:
    """The rows go to the ranks as they were read."""
    return examples


@dataclass(frozen=True, kw_only=True, slots=True)
class FitStage(Generic[T]):
    """How such a stage differs from the others.

    Attributes:
        load: reads the rows: `(config.examples, tokenizer, seed=...)`.
        prepare: the rows that are spread, once the ranks hold the weights that they start from
            and before they go on from a checkpoint; as many as were read, in the same order.
        spread: the rows of one step, or all held-out ones, to the samples of every rank.
        actor_class: of `cluster.roles.fit`: what the ranks are.
        settings: what its worker takes beyond model, training, steps, seed and deadline.
    """

    load: Callable[..., ExampleSet[T]]
    spread: Callable[[Sequence[Any], RankPlan], Sequence[Any]]
    actor_class: type
    settings: Callable[[Config], dict[str, Any]]
    prepare: Callable[[Config, ExampleSet[T], FitSystem, Progress], ExampleSet[Any]] = _as_read


def run_fit(config: Config, stage: FitStage[T]) -> int:
    """Learn from examples.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    output = Path(config.output_dir)
    identity = _identity(config)
    resume_from = checkpoint_to_resume(output, config.resume, identity)
    check_inputs(config)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    with ExitStack() as stack:
        screen = stack.enter_context(quiet_driver(output))
        progress = make_progress(config.observe.progress, 0, screen, FIT_FACTS)
        stack.callback(progress.close)
        plan = plan_resources(config)
        progress.message(f"{render_rows(batch_table(config))}\n{describe(plan)}")
        progress.phase("model")
        path = resolve_model_path(config.model.path, seed=config.seed, report=progress.message)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
        check_trained(config)
        progress.phase("examples")
        examples = stage.load(config.examples, load_tokenizer(config.model), seed=config.seed)
        steps = _steps(config, stage, examples)
        progress.message(f"{examples.describe()}\n{steps.num_steps} optimiser steps")
        check_warmup(config, steps.num_steps)
        progress.expect(steps.num_steps)
        progress.phase("start")
        stack.enter_context(connected(dashboard=config.observe.dashboard))
        system = stack.enter_context(
            started_fit(
                config,
                plan,
                actor_class=stage.actor_class,
                settings=stage.settings(config),
                total_optimizer_steps=steps.num_steps,
            )
        )
        ready = stage.prepare(config, examples, system, progress)
        run = _Run(
            config=config,
            system=system,
            steps=_steps(config, stage, ready),
            held_out=_held_out(config, stage, ready, system),
            identity=identity,
            resume_from=resume_from,
            progress=progress,
        )
        best_step = _learn(run)
        progress.close()
        print(_report(config, steps.num_steps, best_step), file=screen, flush=True)
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What a run is made of once its workers have started.

    Attributes:
        identity: settings without which a resumed run is not the same run.
        resume_from: checkpoint folder, or None.
    """

    config: Config
    system: FitSystem
    steps: FitSteps[Any]
    held_out: HeldOut | NoHeldOut
    identity: dict[str, Any]
    resume_from: Path | None
    progress: Progress


def _learn(run: _Run) -> int | None:
    """Run the loop and write the result; returns the step that it is of, None for the last."""
    config, system, progress = run.config, run.system, run.progress
    output = Path(config.output_dir)
    models = _models(run)
    saver = _saver(run, models)
    state = FitState(step=0, improvement=NOTHING_EVALUATED)
    if run.resume_from:
        state = saver.load(run.resume_from)
        progress.message(f"resumed after step {state.step} from {run.resume_from}")
    else:
        models.start_anew()
    # The line of step 0 is what was measured before the first one.
    last_step = state.step if run.resume_from else -1
    run_name = config.recipe or output.name
    with make_writer(config.observe, output, run=run_name, last_step=last_step) as metrics:
        loop = FitLoop(
            steps=run.steps,
            role=system.ranks,
            held_out=run.held_out,
            models=models,
            watch=system.supervisor,
            observer=FitLog(metrics=metrics, progress=progress),
            saver=saver,
            settings=FitSettings(
                patience=config.fit.patience,
                min_improvement=config.fit.min_improvement,
                update_timeout_s=config.deadlines.update_s,
            ),
        )
        fit(loop, state)
    progress.phase("save")
    models.finish(state.improvement.best_step, output / "model")
    split_off_adapter(output)
    return state.improvement.best_step or None if config.fit.keep_best else None


def _report(config: Config, planned_steps: int, best_step: int | None) -> str:
    output = Path(config.output_dir)
    summary = summarize_fit(
        read_metrics(output / "metrics.jsonl"),
        stage=config.stage.name,
        planned_steps=planned_steps,
        best_step=best_step,
        result=output / "model",
    )
    write_fit_summary(output, summary)
    return fit_table(summary)


def _steps(config: Config, stage: FitStage[T], examples: ExampleSet[T]) -> FitSteps[T]:
    plan = rank_plan(config.training)
    order = RowOrder(
        "samples",
        num_rows=len(examples.train),
        fingerprint=examples.fingerprint,
        seed=config.seed,
        shuffle=config.examples.shuffle,
    )
    return FitSteps(
        examples.train,
        order=order,
        spread=lambda rows: stage.spread(rows, plan),
        samples_per_step=config.fit.samples_per_step,
        num_epochs=config.fit.num_epochs,
        max_steps=config.fit.max_steps,
    )


def _held_out(
    config: Config, stage: FitStage[T], examples: ExampleSet[T], system: FitSystem
) -> HeldOut | NoHeldOut:
    if not examples.held_out:
        return NoHeldOut()
    return HeldOut(
        system.ranks,
        system.supervisor,
        stage.spread(examples.held_out, rank_plan(config.training)),
        every=config.fit.eval_every,
        timeout_s=config.deadlines.evaluate_s,
    )


def _models(run: _Run) -> BestModels | LastModel:
    def save(folder: Path) -> None:
        run.system.supervisor.results(
            run.system.ranks.save_model(folder),
            phase="checkpoint",
            timeout_s=run.config.deadlines.checkpoint_s,
        )

    if run.config.fit.keep_best:
        num_checkpoints = run.config.checkpoint.keep_last
        return BestModels(Path(run.config.output_dir), save, num_checkpoints=num_checkpoints)
    return LastModel(save)


def _saver(run: _Run, models: BestModels | LastModel) -> FitCheckpoints:
    checkpoint = run.config.checkpoint
    return FitCheckpoints(
        checkpoints=Checkpoints(Path(run.config.output_dir), keep_last=checkpoint.keep_last),
        role=run.system.ranks,
        steps=run.steps,
        models=models,
        watch=run.system.supervisor,
        every_steps=checkpoint.every_steps,
        timeout_s=run.config.deadlines.checkpoint_s,
        identity=run.identity,
    )


def _identity(config: Config) -> dict[str, Any]:
    """Settings without which a resumed run is not the same run; the rows are told apart later."""
    return {
        "stage": config.stage.name,
        "seed": config.seed,
        "model.path": config.model.path,
        "model.random_weights": config.model.random_weights,
        "examples.path": config.examples.path,
        "fit.samples_per_step": config.fit.samples_per_step,
        **trained_identity(config),
    }
