"""Models side by side: answers to held-out prompts, scored and compared."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.cluster.resource_plan import describe
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.evaluation import (
    ScoringSystem,
    run_harness,
    started_engines,
    started_scoring,
)
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.driver.evaluation.collector import AnswerCollector, CollectSettings
from rlhf_ray.driver.evaluation.likelihood import measure_likelihood
from rlhf_ray.driver.updates.token_scores import NoTokenScores
from rlhf_ray.evaluation.evaluation_report import ModelAnswers, describe_models
from rlhf_ray.evaluation.files import write_report, write_samples
from rlhf_ray.evaluation.harness_tasks import check_tasks
from rlhf_ray.evaluation.table import side_by_side
from rlhf_ray.failure_report import said_at_once
from rlhf_ray.observe.facts import duration
from rlhf_ray.rewards.first_row import try_first_rows
from rlhf_ray.rewards.load import with_absolute_paths
from rlhf_ray.stages.evaluate.inputs import Candidate, EvaluationInputs, read_inputs
from rlhf_ray.stages.evaluate.prompt_notes import prompt_line, prompt_notes
from rlhf_ray.stages.evaluate.settings import harness_tasks
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.output import opened_output
from rlhf_ray.stages.template_time import with_template_time


def run(config: Config) -> int:
    """Evaluate the models one after the other.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    check_models(config)
    check_tasks(harness_tasks(config.evaluation))
    config = with_template_time(config)
    config = dataclasses.replace(config, reward=with_absolute_paths(config.reward))
    with opened_output(
        Path(config.output_dir),
        to_yaml(config),
        display=config.observe.progress,
        num_steps=len(config.evaluation.models),
    ) as output:
        progress = output.progress
        plan = resource_plan(config)
        progress.message(describe(plan))
        progress.phase("models")
        inputs = read_inputs(config, report=progress.message)
        for note in prompt_notes(inputs.prompts_facts, config.evaluation.models):
            progress.message(note)
        prompt_sets = (inputs.candidates[0].prompts.prompts,)
        try_first_rows(config.reward, prompt_sets, report=progress.message)
        progress.phase("start")
        with (
            connected(
                dashboard=config.observe.dashboard,
                deadlines=config.deadlines,
                error_log=output.folder / "error.log",
            ),
            started_scoring(
                inputs.roles, plan, placement=config.placement, deadlines=config.deadlines
            ) as scoring,
            said_at_once(),
        ):
            collect = inputs.collect
            slots = config.generation.num_engines * config.generation.max_num_seqs
            models: list[ModelAnswers] = []
            for number, candidate in enumerate(inputs.candidates, start=1):
                progress.phase(f"{candidate.name} ({number} of {len(inputs.candidates)})")
                started = time.monotonic()
                path = config.evaluation.models[candidate.name]
                models.append(_evaluate(candidate, path, scoring, collect, slots))
                took = duration(time.monotonic() - started)
                progress.message(f"{candidate.name}: {len(models[-1].prompts)} prompts in {took}")
            progress.close()
            table = _write(inputs, models, output.folder)
            output.finish(f"\n{table}\n\nResult: {output.folder / 'evaluation.json'}")
    return 0


def _evaluate(
    candidate: Candidate, path: str, scoring: ScoringSystem, collect: CollectSettings, slots: int
) -> ModelAnswers:
    """One model.

    Args:
        path: as the request names it.
        slots: sequences that all engines together hold.
    """
    with started_engines(candidate.engines, scoring) as (engines, supervisor):
        collector = AnswerCollector(
            generators=engines,
            rewards=scoring.rewards,
            reference=scoring.reference or NoTokenScores(),
            builder=scoring.builder,
            waiter=supervisor,
            settings=collect,
        )
        collected = collector.collect(candidate.prompts.prompts)
        likelihood = None
        if candidate.demonstrations:
            likelihood = measure_likelihood(
                engines,
                supervisor,
                candidate.demonstrations,
                at_once=slots,
                timeout_s=collect.timeout_s,
            )
    standard = run_harness(candidate.harness, scoring) if candidate.harness else {}
    return ModelAnswers(
        name=candidate.name,
        path=path,
        prompts=collected.prompts,
        failures=collected.failures,
        likelihood=likelihood,
        standard_tasks=standard,
    )


def _write(inputs: EvaluationInputs, models: Sequence[ModelAnswers], output: Path) -> str:
    """Write the files; returns the table."""
    report: dict[str, Any] = describe_models(
        models, baseline=inputs.baseline, settings=inputs.report
    )
    report |= {"prompts": inputs.prompts_facts, "sampling": inputs.sampling_facts}
    write_samples(output, models)
    paths = {model.name: model.path for model in models}
    facts = inputs.prompts_facts
    lines = [prompt_line(facts), *prompt_notes(facts, paths)]
    table = "\n".join((f"{side_by_side(report)}\n", *lines))
    write_report(output, report, table)
    return table
