"""Preference training: a policy learns from rankings or feedback, without a reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_ray.batching.rank_plan import rank_plan
from rlhf_ray.cluster.roles.fit import FeedbackTrainerActor, PreferenceTrainerActor
from rlhf_ray.cluster.systems.fit import FitSystem
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import ExampleSet, load_feedback, load_rankings
from rlhf_ray.driver.fit.reference_cache import AnswerScorer, ReferenceCache
from rlhf_ray.models.fingerprint import model_facts
from rlhf_ray.objectives.feedback import (
    BAD,
    GOOD,
    Judged,
    mismatched_pairs,
    prompt_of,
    spread_feedback,
)
from rlhf_ray.objectives.preference_batches import PreferenceGroup, spread_preference_groups
from rlhf_ray.observe.progress import Progress
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.fit.run import FitStage, run_fit


def run(config: Config) -> int:
    """See `run_fit`."""
    if config.preference.is_of_feedback:
        return run_fit(config, _OF_FEEDBACK)
    return run_fit(config, _of_rankings(config))


def _of_rankings(config: Config) -> FitStage[Ranking]:
    return FitStage(
        load=rankings_within(config.training.max_tokens_per_micro_batch),
        prepare=_with_references,
        spread=spread_preference_groups,
        actor_class=PreferenceTrainerActor,
        settings=_settings,
    )


def _settings(config: Config) -> dict[str, Any]:
    return {"preference": config.preference}


def rankings_within(budget: int) -> Callable[..., ExampleSet[Ranking]]:
    """`load_rankings` that refuses rankings which no forward pass can hold."""

    def load(*inputs: Any, **named: Any) -> ExampleSet[Ranking]:
        examples = load_rankings(*inputs, **named)
        rankings = (*examples.train, *examples.held_out)
        most = max(len(ranking.answers) for ranking in rankings)
        longest = max(len(answer.token_ids) for row in rankings for answer in row.answers)
        if most * longest > budget:
            raise RequestError(
                f"training.max_tokens_per_micro_batch={budget}: the answers of a ranking are one "
                f"forward pass, of {most} times {longest} tokens; raise it to at least "
                f"{most * longest}, or lower examples.max_tokens"
            )
        return examples

    return load


def _with_references(
    config: Config, examples: ExampleSet[Ranking], system: FitSystem, progress: Progress
) -> ExampleSet[Any]:
    """The rankings as families that know what the starting policy says of them."""
    preference_groups = {
        "train": [_preference_group(ranking) for ranking in examples.train],
        "held_out": [_preference_group(ranking) for ranking in examples.held_out],
    }
    return dataclasses.replace(
        examples, **_referenced(config, examples.fingerprint, preference_groups, system, progress)
    )


def _preference_group(ranking: Ranking) -> PreferenceGroup:
    size = len(ranking.answers)
    return PreferenceGroup(
        answers=ranking.answers,
        ranks=tuple(range(size)),
        margin=ranking.margin or 0.0,
        reference_logprobs=(0.0,) * size,
    )


def _referenced(
    config: Config,
    rows: str,
    preference_groups: dict[str, list[PreferenceGroup]],
    system: FitSystem,
    progress: Progress,
) -> dict[str, tuple[PreferenceGroup, ...]]:
    """Args: rows: fingerprint of what the families are made of."""
    plan = rank_plan(config.training)
    facts = {
        "rows": rows,
        "model": model_facts(config.model.path),
        "dtype": config.training.dtype,
        "attention": config.model.attention,
    }
    score = AnswerScorer(
        system.ranks,
        system.supervisor,
        lambda some: spread_preference_groups(some, plan),
        timeout_s=config.deadlines.reference_s,
    )
    progress.phase("reference")
    cache = ReferenceCache(Path(config.output_dir), facts)
    return cache.referenced(preference_groups, score, progress.message)


def load_comparable_feedback(*inputs: Any, **named: Any) -> ExampleSet[Feedback]:
    """`load_feedback` that refuses rows which cannot be mismatched."""
    examples = load_feedback(*inputs, **named)
    for name, rows in (("learnt from", examples.train), ("held out", examples.held_out)):
        if len({prompt_of(row) for row in rows}) == 1:
            raise RequestError(
                f"preference.loss=kto compares with answers to other prompts, but all feedback "
                f"that is {name} has one prompt; give more rows, or another share of them with "
                f"examples.eval_share"
            )
    return examples


def _with_mismatched(
    config: Config, examples: ExampleSet[Feedback], system: FitSystem, progress: Progress
) -> ExampleSet[Any]:
    """The feedback with mismatched answers, and what the starting policy says of both."""
    sides = {"train": examples.train, "held_out": examples.held_out}
    preference_groups: dict[str, list[PreferenceGroup]] = {}
    for side, rows in sides.items():
        preference_groups[side] = [_alone(row.sample, GOOD if row.is_good else BAD) for row in rows]
        pairs = mismatched_pairs(rows, max_tokens=config.examples.max_tokens) if rows else []
        preference_groups[f"{side}_mismatched"] = [_alone(pair, GOOD) for pair in pairs]
    found = _referenced(config, examples.fingerprint, preference_groups, system, progress)
    judged = {
        side: tuple(
            Judged(answer=answer, mismatched=mismatched)
            for answer, mismatched in zip(found[side], found[f"{side}_mismatched"], strict=True)
        )
        for side in sides
    }
    return dataclasses.replace(examples, **judged)


def _alone(sample: LabelledTokens, rank: int) -> PreferenceGroup:
    return PreferenceGroup(answers=(sample,), ranks=(rank,), margin=0.0, reference_logprobs=(0.0,))


_OF_FEEDBACK: FitStage[Feedback] = FitStage(
    load=load_comparable_feedback,
    prepare=_with_mismatched,
    spread=spread_feedback,
    actor_class=FeedbackTrainerActor,
    settings=_settings,
)
