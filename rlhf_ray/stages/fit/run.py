"""The stages that learn from examples: rows, ranks, loop, result."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.cluster.resource_plan import describe
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.fit import FitSystem, started_fit
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import ExampleSet
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.checkpoints import Checkpoints, StepCheckpoints, checkpoint_to_resume
from rlhf_ray.driver.fit.checkpoints import FitCheckpoints, FitState
from rlhf_ray.driver.fit.held_out import NOTHING_EVALUATED, HeldOut, NoHeldOut
from rlhf_ray.driver.fit.loop import FitLoop, FitSettings, fit
from rlhf_ray.driver.fit.steps import FitSteps
from rlhf_ray.driver.run_log import FitLog
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.facts import FIT_FACTS
from rlhf_ray.observe.fit_report import fit_table, summarize_fit, write_fit_summary
from rlhf_ray.observe.metrics import make_writer, read_metrics
from rlhf_ray.observe.progress import Progress
from rlhf_ray.stages.fit.inputs import (
    FitInputs,
    FitStage,
    T,
    fit_identity,
    fit_inputs,
    num_optimizer_steps,
)
from rlhf_ray.stages.inputs import check_inputs, check_warmup
from rlhf_ray.stages.output import opened_output
from rlhf_ray.stages.trained_part import check_trained, split_off_adapter


def run_fit(config: Config, stage: FitStage[T]) -> int:
    """Learn from examples.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    identity = fit_identity(config)
    resume_from = checkpoint_to_resume(Path(config.output_dir), config.resume, identity)
    check_inputs(config)
    with opened_output(
        Path(config.output_dir),
        to_yaml(config),
        display=config.observe.progress,
        num_steps=0,
        facts=FIT_FACTS,
    ) as output:
        progress = output.progress
        plan = resource_plan(config)
        progress.message(f"{render_rows(batch_table(config))}\n{describe(plan)}")
        progress.phase("model")
        path = resolve_model_path(config.model.path, seed=config.seed, report=progress.message)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
        check_trained(config)
        progress.phase("examples")
        examples = stage.load(config.examples, load_tokenizer(config.model), seed=config.seed)
        num_steps = num_optimizer_steps(config.fit, examples)
        progress.message(f"{examples.describe()}\n{num_steps} optimiser steps")
        check_warmup(config.training.warmup_steps, num_steps)
        progress.expect(num_steps)
        progress.phase("start")
        inputs = fit_inputs(config, stage, num_steps, identity=identity, resume_from=resume_from)
        with (
            connected(
                dashboard=config.observe.dashboard,
                deadlines=config.deadlines,
                error_log=output.folder / "error.log",
            ),
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
        models.clear()
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
            waiter=system.supervisor,
            log=FitLog(metrics=metrics, progress=progress),
            checkpoints=saver,
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
        samples_per_step=inputs.fit.batch_size,
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
    checkpoints = StepCheckpoints(
        Checkpoints(run.output, keep_last=checkpoint.keep_last),
        roles={"learner": run.system.ranks},
        waiter=run.system.supervisor,
        every_steps=checkpoint.every_steps,
        timeout_s=run.inputs.deadlines.checkpoint_s,
        identity=run.inputs.identity,
    )
    return FitCheckpoints(checkpoints, steps=run.steps, models=models)
