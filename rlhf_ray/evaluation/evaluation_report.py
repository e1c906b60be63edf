"""Content of evaluation.json: one description of JSON values for each model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.algorithms.equality import reaches
from rlhf_ray.evaluation.answers import DISTINCT_SIZES, MODES, SAMPLED, Answer, PromptAnswers
from rlhf_ray.evaluation.statistics import (
    Estimate,
    estimate,
    pass_at_k,
    perplexity,
    win_rate,
    win_share,
)

# Increased when a key of evaluation.json is renamed or changes its meaning; new keys may be added
# without.
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """Settings of the report; see the keys of the same names in `config.groups.evaluation`."""

    pass_at_k: tuple[int, ...]
    success_by: str
    success_reward: float
    win_by: str
    confidence: float
    num_resamples: int
    kl: str
    ngram: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """Likelihood of demonstrations under a model.

    Attributes:
        total_nats: negative log-probability of all answers together.
        num_tokens: number of tokens of the answers.
    """

    num_examples: int
    num_tokens: int
    total_nats: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelAnswers:
    """All answers and other results of one model.

    Attributes:
        failures: messages, one for each prompt without a result.
        standard_tasks: see `harness_tasks.task_results`.
    """

    name: str
    path: str
    prompts: tuple[PromptAnswers, ...]
    failures: tuple[str, ...]
    likelihood: Likelihood | None
    standard_tasks: Mapping[str, Any]


def describe_models(
    models: Sequence[ModelAnswers], *, baseline: str, settings: ReportSettings
) -> dict[str, Any]:
    """Content of evaluation.json.

    Args:
        baseline: name of the model with which the others are compared.
    """
    by_name = {model.name: model for model in models}
    return {
        "schema": SCHEMA,
        "baseline": baseline,
        "settings": {
            "pass_at_k": list(settings.pass_at_k),
            "success_by": settings.success_by,
            "success_reward": settings.success_reward,
            "win_by": settings.win_by,
            "confidence": settings.confidence,
            "num_resamples": settings.num_resamples,
            "kl": settings.kl,
            "ngram": settings.ngram,
            "seed": settings.seed,
        },
        "models": {
            model.name: _describe_model(model, by_name[baseline], settings) for model in models
        },
    }


def describe_mode(
    prompts: Sequence[PromptAnswers], mode: str, settings: ReportSettings
) -> dict[str, Any] | None:
    """Measures of a model's greedy or sampled answers; None if it has none."""
    answered = [prompt for prompt in prompts if mode in prompt.answers]
    if not answered:
        return None
    groups = [prompt.answers[mode] for prompt in answered]
    answers = [answer for group in groups for answer in group]
    parts = sorted({name for answer in answers for name in answer.parts})
    tasks: dict[str, list[Sequence[Answer]]] = {}
    for prompt in answered:
        tasks.setdefault(prompt.source, []).append(prompt.answers[mode])
    return {
        "num_prompts": len(groups),
        "num_answers": len(answers),
        "reward": _over_prompts(groups, lambda answer: answer.reward),
        "reward_parts": {
            name: _over_prompts(groups, lambda answer, name=name: answer.parts[name])
            for name in parts
        },
        "tasks": {
            task: _over_prompts(tasks[task], lambda answer: answer.reward) for task in sorted(tasks)
        },
        "success_share": _over_prompts(groups, lambda answer: float(_succeeds(answer, settings))),
        "pass_at_k": _passes(groups, settings) if mode == SAMPLED else {},
        "length": _over_prompts(groups, lambda answer: float(answer.num_tokens)),
        "truncated_share": _mean(float(answer.is_cut) for answer in answers),
        "repeated_share": _mean(a.repeated for a in answers if a.repeated is not None),
        "distinct": {
            str(n): _mean(
                share
                for prompt in answered
                if (share := prompt.distinct[mode][position]) is not None
            )
            for position, n in enumerate(DISTINCT_SIZES)
        },
    }


def describe_kl(prompts: Sequence[PromptAnswers]) -> dict[str, Any] | None:
    """KL divergence from the reference on sampled answers; None if it was not measured."""
    groups = [
        measured
        for prompt in prompts
        if (measured := [a for a in prompt.answers.get(SAMPLED, ()) if a.kl is not None])
    ]
    if not groups:
        return None
    answers = [answer for group in groups for answer in group]
    num_tokens = sum(answer.num_tokens for answer in answers)
    total = math.fsum(_kl_of(answer) for answer in answers)
    return {
        "per_token": finite_or_none(total / num_tokens if num_tokens else math.nan),
        "per_answer": _over_prompts(groups, _kl_of),
    }


def finite_or_none(value: float) -> float | None:
    """Replace NaN and infinities, which JSON does not have, by None."""
    return value if math.isfinite(value) else None


def _describe_model(
    model: ModelAnswers, baseline: ModelAnswers, settings: ReportSettings
) -> dict[str, Any]:
    modes = {}
    for mode in MODES:
        described = describe_mode(model.prompts, mode, settings)
        if described is not None and model is not baseline:
            described["win_rate"] = _wins(model, baseline, mode, settings)
        elif described is not None:
            described["win_rate"] = None
        modes[mode] = described
    return {
        "path": model.path,
        "num_prompts": len(model.prompts),
        "failed_prompts": len(model.failures),
        "first_failure": model.failures[0] if model.failures else None,
        **modes,
        "kl": describe_kl(model.prompts),
        "perplexity": _describe_likelihood(model.likelihood),
        "lm_eval": dict(model.standard_tasks),
    }


def _wins(
    model: ModelAnswers, baseline: ModelAnswers, mode: str, settings: ReportSettings
) -> dict[str, Any]:
    """Win rate against the baseline, over the prompts that both models have answered."""
    theirs = {prompt.prompt_id: prompt.answers.get(mode, ()) for prompt in baseline.prompts}
    shares = [
        win_share(
            [answer.score(settings.win_by) for answer in prompt.answers[mode]],
            [answer.score(settings.win_by) for answer in theirs[prompt.prompt_id]],
        )
        for prompt in model.prompts
        if prompt.answers.get(mode) and theirs.get(prompt.prompt_id)
    ]
    found = win_rate(
        shares,
        confidence=settings.confidence,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
    )
    return {
        "mean": finite_or_none(found.mean),
        "low": finite_or_none(found.low),
        "high": finite_or_none(found.high),
        "num_prompts": found.count,
    }


def _passes(groups: Sequence[Sequence[Answer]], settings: ReportSettings) -> dict[str, Any]:
    correct = [(len(g), sum(_succeeds(answer, settings) for answer in g)) for g in groups]
    return {
        str(k): _plain(estimate([pass_at_k(n, c, k) for n, c in correct if n >= k]))
        for k in settings.pass_at_k
    }


def _succeeds(answer: Answer, settings: ReportSettings) -> bool:
    return reaches(answer.score(settings.success_by), settings.success_reward)


def _describe_likelihood(likelihood: Likelihood | None) -> dict[str, Any] | None:
    if likelihood is None:
        return None
    value = perplexity(likelihood.total_nats, likelihood.num_tokens)
    return {
        "value": finite_or_none(value),
        "num_examples": likelihood.num_examples,
        "num_tokens": likelihood.num_tokens,
    }


def _over_prompts(
    groups: Sequence[Sequence[Answer]], value: Callable[[Answer], float]
) -> dict[str, Any]:
    """Mean and standard error over prompts, each prompt being the mean over its answers."""
    return _plain(estimate([math.fsum(map(value, group)) / len(group) for group in groups]))


def _plain(found: Estimate) -> dict[str, Any]:
    return {
        "mean": finite_or_none(found.mean),
        "standard_error": finite_or_none(found.standard_error),
        "num_prompts": found.count,
    }


def _mean(values: Iterable[float]) -> float | None:
    return finite_or_none(estimate(list(values)).mean)


def _kl_of(answer: Answer) -> float:
    assert answer.kl is not None
    return answer.kl
