"""The settings of an evaluation, alone and while a policy is trained."""

from __future__ import annotations

from typing import Any

from rlhf_ray.config.groups.evaluation import EvaluationConfig
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.driver.evaluation.collector import CollectSettings
from rlhf_ray.evaluation.answers import MeasureSettings
from rlhf_ray.evaluation.evaluation_report import ReportSettings
from rlhf_ray.evaluation.harness_tasks import HarnessTasks


def collect_settings(
    evaluation: EvaluationConfig,
    generation: GenerationConfig,
    *,
    greedy_from: int,
    max_failure_rate: float,
    timeout_s: float,
    measures_kl: bool,
    with_text: bool,
) -> CollectSettings:
    """Settings for answering the prompts."""
    slots = generation.num_engines * generation.max_num_seqs
    return CollectSettings(
        samples=evaluation.samples,
        greedy=evaluation.greedy,
        prompts_at_once=max(1, slots // max(1, evaluation.answers_per_prompt)),
        max_failure_rate=max_failure_rate,
        timeout_s=timeout_s,
        measure=MeasureSettings(
            greedy_from=greedy_from,
            kl_estimator=evaluation.kl if measures_kl else "none",
            ngram=evaluation.ngram,
            with_text=with_text,
        ),
    )


def harness_tasks(evaluation: EvaluationConfig) -> HarnessTasks:
    """The tasks that lm-evaluation-harness runs."""
    return HarnessTasks(
        names=tuple(evaluation.lm_eval_tasks),
        folder=evaluation.lm_eval_path,
        limit=evaluation.lm_eval_limit,
        shots=evaluation.lm_eval_shots,
        uses_chat_template=evaluation.lm_eval_chat,
        max_tokens=evaluation.lm_eval_max_tokens,
    )


def report_settings(evaluation: EvaluationConfig, *, seed: int) -> ReportSettings:
    """The statistics that are reported of the answers."""
    return ReportSettings(
        pass_at_k=tuple(sorted(set(evaluation.pass_at_k))),
        success_by=evaluation.success_by,
        success_reward=evaluation.success_reward,
        win_by=evaluation.win_by,
        confidence=evaluation.confidence,
        num_resamples=evaluation.num_resamples,
        kl=evaluation.kl,
        ngram=evaluation.ngram,
        seed=seed,
    )


def sampling_facts(evaluation: EvaluationConfig, generation: GenerationConfig) -> dict[str, Any]:
    """The sampling of an evaluation, for its report."""
    return {
        "greedy": evaluation.greedy,
        "samples": evaluation.samples,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "min_p": generation.min_p,
        "max_response_tokens": generation.max_response_tokens,
    }
