"""stage=evaluate: several models answer the same held-out prompts, and are put side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlhf_ray.cluster.resource_plan import ResourcePlan, describe, plan_resources
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.evaluation import (
    ScoringSystem,
    run_harness,
    started_engines,
    started_scoring,
)
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.driver.evaluation.collector import AnswerCollector
from rlhf_ray.driver.evaluation.likelihood import measure_likelihood
from rlhf_ray.driver.updates.scorers import NoScores
from rlhf_ray.evaluation.evaluation_report import ModelAnswers, describe_models
from rlhf_ray.evaluation.files import write_report, write_samples
from rlhf_ray.evaluation.harness_tasks import check_tasks
from rlhf_ray.evaluation.table import side_by_side
from rlhf_ray.observe.facts import duration
from rlhf_ray.observe.output_capture import quiet_driver
from rlhf_ray.observe.progress import make_progress
from rlhf_ray.rewards.load import with_absolute_paths
from rlhf_ray.stages.evaluate.inputs import Candidate, read_candidates
from rlhf_ray.stages.evaluate.settings import (
    collect_settings,
    harness_tasks,
    held_out_data,
    report_settings,
)
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.reward_checks import check_service


def run(config: Config) -> int:
    """Evaluate the models one after the other.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    output = Path(config.output_dir)
    check_models(config)
    check_tasks(harness_tasks(config))
    config = dataclasses.replace(config, reward=with_absolute_paths(config.reward))
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    with ExitStack() as stack:
        screen = stack.enter_context(quiet_driver(output))
        progress = make_progress(config.observe.progress, len(config.evaluation.models), screen)
        stack.callback(progress.close)
        plan = plan_resources(config)
        progress.message(describe(plan))
        progress.phase("models")
        config, candidates = read_candidates(config, report=progress.message)
        check_service(config.reward, report=progress.message)
        progress.phase("start")
        stack.enter_context(connected(dashboard=config.observe.dashboard))
        scoring = stack.enter_context(started_scoring(config, plan))
        models: list[ModelAnswers] = []
        for number, candidate in enumerate(candidates, start=1):
            progress.phase(f"{candidate.name} ({number} of {len(candidates)})")
            started = time.monotonic()
            models.append(_evaluate(config, plan, scoring, candidate))
            took = duration(time.monotonic() - started)
            progress.message(f"{candidate.name}: {len(models[-1].prompts)} prompts in {took}")
        progress.close()
        table = _write(config, candidates, models)
        print(f"\n{table}\n\nResult: {output / 'evaluation.json'}", file=screen, flush=True)
    return 0


def _evaluate(
    config: Config, plan: ResourcePlan, scoring: ScoringSystem, candidate: Candidate
) -> ModelAnswers:
    own = dataclasses.replace(config, model=candidate.model)
    with started_engines(own, plan, scoring) as (engines, watch):
        collector = AnswerCollector(
            generators=engines,
            rewards=scoring.rewards,
            reference=scoring.reference or NoScores(),
            meter=scoring.builder,
            watch=watch,
            settings=collect_settings(config, measures_kl=True, with_text=True),
        )
        collected = collector.collect(candidate.prompts.prompts)
        likelihood = None
        if candidate.demonstrations:
            likelihood = measure_likelihood(
                engines,
                watch,
                candidate.demonstrations,
                at_once=config.generation.num_engines * config.generation.max_num_seqs,
                timeout_s=config.deadlines.evaluate_s,
            )
    tasks = harness_tasks(config)
    standard = run_harness(own, plan, scoring, tasks) if tasks.names else {}
    return ModelAnswers(
        name=candidate.name,
        path=config.evaluation.models[candidate.name],
        prompts=collected.prompts,
        failures=collected.failures,
        likelihood=likelihood,
        standard_tasks=standard,
    )


def _write(config: Config, candidates: Sequence[Candidate], models: Sequence[ModelAnswers]) -> str:
    """The files; returns the table."""
    report = describe_models(
        models, baseline=config.evaluation.baseline_name, settings=report_settings(config)
    )
    report |= {"prompts": _prompts(config, candidates), "sampling": _sampling(config)}
    table = side_by_side(report)
    output = Path(config.output_dir)
    write_samples(output, models)
    write_report(output, report, table)
    return table


def _prompts(config: Config, candidates: Sequence[Candidate]) -> dict[str, Any]:
    data = held_out_data(config)
    return {
        "path": data.path,
        "split": data.split,
        "num_prompts": len(candidates[0].prompts.prompts),
    }


def _sampling(config: Config) -> dict[str, Any]:
    evaluation, generation = config.evaluation, config.generation
    return {
        "greedy": evaluation.greedy,
        "samples": evaluation.samples,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "min_p": generation.min_p,
        "max_response_tokens": generation.max_response_tokens,
    }
