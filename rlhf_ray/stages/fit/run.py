"""The stages that learn from examples: rows, ranks, loop, result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
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
from rlhf_ray.data.template_time import time_line
from rlhf_ray.data.tokens.turn_ends import TurnEnd
from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.fit.checkpoints import FitCheckpoints, FitState
from rlhf_ray.driver.fit.held_out import NOTHING_EVALUATED, HeldOut, NoHeldOut
from rlhf_ray.driver.fit.loop import FitLoop, FitSettings, fit
from rlhf_ray.driver.fit.steps import FitSteps
from rlhf_ray.driver.resume_choice import check_length, check_rows
from rlhf_ray.driver.run_log import FitLog
from rlhf_ray.failure_report import said_at_once
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.saving.generation_ends import add_ends, added_line
from rlhf_ray.models.saving.write import check_saved
from rlhf_ray.observe.facts import FIT_FACTS
from rlhf_ray.observe.fit_report import fit_table, summarize_fit, write_fit_summary
from rlhf_ray.observe.metrics import make_writer, read_metrics
from rlhf_ray.observe.progress import Progress
from rlhf_ray.observe.spans.span_log import SpanLog
from rlhf_ray.planning.storage.disk import check_disk
from rlhf_ray.stages.fit.first_example import first_example
from rlhf_ray.stages.fit.inputs import (
    FitInputs,
    FitStage,
    T,
    fit_identity,
    fit_inputs,
    num_optimizer_steps,
)
from rlhf_ray.stages.inputs import check_inputs, check_warmup
from rlhf_ray.stages.model_files import check_trained_model
from rlhf_ray.stages.output import opened_output
from rlhf_ray.stages.positions import context_of_model, examples_within
from rlhf_ray.stages.resume import resume_of_fit, run_settings
from rlhf_ray.stages.template_time import with_template_time
from rlhf_ray.stages.trained_part import check_trained, split_off_adapter


def run_fit(config: Config, stage: FitStage[T]) -> int:
    """Learn from examples.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    config = with_template_time(config)
    settings = run_settings(config, fit_identity(config), code={})
    resume_from = resume_of_fit(config, settings)
    check_inputs(config)
    check_disk(config)
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
        for note in resume_from.notes if resume_from else ():
            progress.message(note)
        read = _read(config, stage, progress)
        inputs = fit_inputs(
            read.config, stage, read.num_steps, kept_settings=settings, resume_from=resume_from
        )
        check_rows(resume_from, ("steps",), _order(inputs, read.examples).load_state_dict)
        if resume_from is not None:
            epochs = f"the length of fit.num_epochs={config.fit.num_epochs} over these rows"
            check_length(resume_from.folder, (epochs, read.num_steps))
        progress.phase("start")
        with (
            connected(
                dashboard=config.observe.dashboard,
                deadlines=config.deadlines,
                error_log=output.folder / "error.log",
            ),
            started_fit(
                inputs.role, plan, placement=config.placement, deadlines=config.deadlines
            ) as system,
            said_at_once(),
        ):
            ready = stage.prepare(inputs, read.examples, system, output)
            run = _Run(
                inputs=inputs,
                output=output.folder,
                system=system,
                steps=_steps(inputs, stage, ready),
                held_out=_held_out(inputs, stage, ready, system),
                num_held_out=len(ready.held_out),
                progress=progress,
                end_token_ids=tuple(end.token_id for end in read.turn_ends),
            )
            output.finish(_report(run, read.num_steps, _learn(run)))
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Material:
    """Model and examples of a run, read and checked; see `_Run` for the ends."""

    config: Config
    examples: ExampleSet
    turn_ends: Sequence[TurnEnd]
    num_steps: int


def _read(config: Config, stage: FitStage, progress: Progress) -> _Material:
    progress.phase("model")
    path = resolve_model_path(config.model.path, seed=config.seed, report=progress.message)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
    tokenizer = check_trained_model(config, progress.message)
    check_trained(config)
    limited = examples_within(
        config.examples, context_of_model(config.model), path, progress.message
    )
    config = dataclasses.replace(config, examples=limited)
    progress.phase("examples")
    examples = stage.load(config.examples, tokenizer, seed=config.seed)
    turn_ends = examples.turn_ends if stage.is_generative else ()
    num_steps = num_optimizer_steps(config.fit, examples)
    lines = [examples.describe(), f"{num_steps} optimiser steps"]
    lines += [time_line(tokenizer), added_line(turn_ends, config.model, tokenizer)]
    if config.observe.show_samples and len(examples.train):
        lines.append(first_example(examples.train[0], tokenizer))
    progress.message("\n".join(filter(None, lines)))
    check_warmup(config.training.warmup_steps, num_steps)
    progress.expect(num_steps)
    return _Material(config=config, examples=examples, turn_ends=turn_ends, num_steps=num_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """The parts of a run once its workers have started.

    Attributes:
        end_token_ids: ends of answers that the ranks learn; none of a model that writes no text.
    """

    inputs: FitInputs
    output: Path
    system: FitSystem
    steps: FitSteps[Any]
    held_out: HeldOut | NoHeldOut
    num_held_out: int
    progress: Progress
    end_token_ids: tuple[int, ...]


def _learn(run: _Run) -> int | None:
    """Run the loop and write the result; returns the step of the kept model, None for the last."""
    inputs, system, progress = run.inputs, run.system, run.progress
    models = _models(run)
    saver = _saver(run, models)
    state = FitState(step=0, improvement=NOTHING_EVALUATED)
    if inputs.resume_from:
        folder = saver.verified(inputs.resume_from, progress.message)
        state = saver.load(folder)
        progress.message(f"resumed after step {state.step} from {folder}")
    else:
        models.clear()
    # The line of step 0 has what was measured before the first step.
    last_step = state.step if inputs.resume_from else -1
    with (
        make_writer(
            inputs.observe, run.output, run=inputs.run_name, last_step=last_step
        ) as metrics,
        closing(SpanLog(run.output, system.supervisor.spans, last_step=last_step)) as spans,
    ):
        loop = FitLoop(
            steps=run.steps,
            role=system.ranks,
            held_out=run.held_out,
            models=models,
            waiter=system.supervisor,
            log=FitLog(metrics=metrics, progress=progress, spans=spans),
            checkpoints=saver,
            settings=FitSettings(
                patience=inputs.fit.patience,
                min_improvement=inputs.fit.min_improvement,
                update_timeout_s=inputs.deadlines.update_s,
            ),
        )
        fit(loop, state)
        saver.finish()
    progress.phase("save")
    models.finish(state.improvement.best_step, run.output / "model")
    split_off_adapter(run.output)
    check_saved(run.output / "model")
    return state.improvement.best_step or None if inputs.fit.keep_best else None


def _report(run: _Run, planned_steps: int, best_step: int | None) -> str:
    summary = summarize_fit(
        read_metrics(run.output / "metrics.jsonl"),
        stage=run.inputs.stage,
        planned_steps=planned_steps,
        num_held_out=run.num_held_out,
        best_step=best_step,
        result=run.output / "model",
    )
    write_fit_summary(run.output, summary)
    return fit_table(summary)


def _steps(inputs: FitInputs, stage: FitStage[T], examples: ExampleSet[T]) -> FitSteps[T]:
    return FitSteps(
        examples.train,
        order=_order(inputs, examples),
        spread=lambda rows: stage.spread(rows, inputs.plan),
        samples_per_step=inputs.fit.batch_size,
        num_epochs=inputs.fit.num_epochs,
        max_steps=inputs.fit.max_steps,
    )


def _order(inputs: FitInputs, examples: ExampleSet[Any]) -> RowOrder:
    return RowOrder(
        "samples",
        num_rows=len(examples.train),
        fingerprint=examples.fingerprint,
        seed=inputs.seed,
        shuffle=inputs.examples.shuffle,
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
        if run.end_token_ids:
            add_ends(folder, run.end_token_ids)

    if run.inputs.fit.keep_best:
        return BestModels(run.output, save, num_checkpoints=run.inputs.checkpoint.num_kept)
    return LastModel(save)


def _saver(run: _Run, models: BestModels | LastModel) -> FitCheckpoints:
    checkpoint = run.inputs.checkpoint
    checkpoints = StepCheckpoints(
        Checkpoints(run.output, keep_last=checkpoint.keep_last),
        roles={"learner": run.system.ranks},
        waiter=run.system.supervisor,
        every_steps=checkpoint.every_steps,
        timeout_s=run.inputs.deadlines.checkpoint_s,
        identity=run.inputs.kept_settings.identity,
        settings=run.inputs.kept_settings.in_checkpoint(),
        in_background=checkpoint.background,
    )
    return FitCheckpoints(checkpoints, steps=run.steps, models=models)
