"""Rows of preference training with the log-probabilities of the policy at its start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.batching.sequence_split import SequenceSplit
from rlhf_ray.cluster.roles.fit import FeedbackTrainerActor, PreferenceTrainerActor
from rlhf_ray.cluster.systems.fit import FitSystem
from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.examples import ExampleSet, load_feedback, load_rankings
from rlhf_ray.driver.fit.reference_cache import AnswerScorer, Groups, ReferenceCache
from rlhf_ray.mapped_rows import MappedRows
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
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.fit.inputs import FitInputs, FitStage
from rlhf_ray.stages.output import RunOutput


def rankings_stage(plan: RankPlan) -> FitStage[Ranking]:
    """Learning from rankings, in forward passes of this plan."""
    return FitStage(
        load=rankings_within(
            plan.max_tokens_per_micro_batch, ranks_per_sample=plan.sequence_parallel_size
        ),
        prepare=_with_references,
        spread=spread_preference_groups,
        actor_class=PreferenceTrainerActor,
    )


def feedback_stage() -> FitStage[Feedback]:
    """Learning from answers that are good or bad."""
    return FitStage(
        load=load_comparable_feedback,
        prepare=_with_mismatched,
        spread=spread_feedback,
        actor_class=FeedbackTrainerActor,
    )


def rankings_within(
    budget: int, *, ranks_per_sample: int = 1
) -> Callable[..., ExampleSet[Ranking]]:
    """`load_rankings` that refuses rankings which no forward pass can hold."""

    def load(*inputs: Any, **named: Any) -> ExampleSet[Ranking]:
        examples = load_rankings(*inputs, **named)
        most = longest = 0
        for ranking in chain(examples.train, examples.held_out):
            most = max(most, len(ranking.answers))
            longest = max(longest, *(len(answer.token_ids) for answer in ranking.answers))
        split = SequenceSplit(size=ranks_per_sample)
        needed = most * split.held(longest)
        if needed > budget:
            raise RequestError(
                f"training.max_tokens_per_micro_batch={budget}: the answers of a ranking are one "
                f"forward pass, of {most} times {longest} tokens{split.described}; raise it to at "
                f"least {needed}, or lower examples.max_tokens"
            )
        return examples

    return load


def _with_references(
    inputs: FitInputs, examples: ExampleSet[Ranking], system: FitSystem, output: RunOutput
) -> ExampleSet[Any]:
    """The rankings as families that know what the starting policy says of them."""
    preference_groups = {
        "train": MappedRows(examples.train, _preference_group),
        "held_out": MappedRows(examples.held_out, _preference_group),
    }
    return dataclasses.replace(
        examples, **_referenced(inputs, examples.fingerprint, preference_groups, system, output)
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
    inputs: FitInputs,
    rows: str,
    preference_groups: Mapping[str, Groups],
    system: FitSystem,
    output: RunOutput,
) -> dict[str, Groups]:
    """Args: rows: fingerprint of what the families are made of."""
    facts = {
        "rows": rows,
        "model": model_facts(inputs.model_path),
        "dtype": inputs.dtype,
        "attention": inputs.attention,
    }
    score = AnswerScorer(
        system.ranks,
        system.supervisor,
        lambda some: spread_preference_groups(some, inputs.plan),
        timeout_s=inputs.deadlines.reference_s,
    )
    output.progress.phase("reference")
    cache = ReferenceCache(output.folder, facts)
    return cache.referenced(preference_groups, score, output.progress.message)


def load_comparable_feedback(*inputs: Any, **named: Any) -> ExampleSet[Feedback]:
    """`load_feedback` that refuses rows which cannot be mismatched, or teach no difference."""
    examples = load_feedback(*inputs, **named)
    kinds = {row.is_good for row in examples.train}
    if len(kinds) == 1:
        kind, other = ("good", "bad") if kinds == {True} else ("bad", "good")
        raise RequestError(
            f"preference.loss=kto learns from good and bad answers, but all {len(examples.train)} "
            f"answers that are learnt from are {kind}; add {other} ones"
            + (", or learn these answers with stage=sft" if kind == "good" else "")
        )
    for name, rows in (("learnt from", examples.train), ("held out", examples.held_out)):
        if rows and _is_one(prompt_of(row) for row in rows):
            raise RequestError(
                f"preference.loss=kto compares with answers to other prompts, but all feedback "
                f"that is {name} has one prompt; give more rows, or another share of them with "
                f"examples.eval_share"
            )
    return examples


def _is_one(prompts: Iterator[tuple[int, ...]]) -> bool:
    first = next(prompts)
    return all(prompt == first for prompt in prompts)


def _with_mismatched(
    inputs: FitInputs, examples: ExampleSet[Feedback], system: FitSystem, output: RunOutput
) -> ExampleSet[Any]:
    """The feedback with mismatched answers, and what the starting policy says of both."""
    sides = {"train": examples.train, "held_out": examples.held_out}
    preference_groups: dict[str, Groups] = {}
    for side, rows in sides.items():
        preference_groups[side] = MappedRows(rows, _judged_alone)
        pairs = mismatched_pairs(rows, max_tokens=inputs.examples.max_tokens) if rows else ()
        preference_groups[f"{side}_mismatched"] = MappedRows(pairs, _good_alone)
    found = _referenced(inputs, examples.fingerprint, preference_groups, system, output)
    judged = {side: _judged(found[side], found[f"{side}_mismatched"]) for side in sides}
    return dataclasses.replace(examples, **judged)


def _judged(answers: Groups, mismatched: Groups) -> Sequence[Judged]:
    assert len(answers) == len(mismatched)
    return MappedRows(
        range(len(answers)),
        lambda number: Judged(answer=answers[number], mismatched=mismatched[number]),
    )


def _judged_alone(row: Feedback) -> PreferenceGroup:
    return _alone(row.sample, GOOD if row.is_good else BAD)


def _good_alone(pair: LabelledTokens) -> PreferenceGroup:
    return _alone(pair, GOOD)


def _alone(sample: LabelledTokens, rank: int) -> PreferenceGroup:
    return PreferenceGroup(answers=(sample,), ranks=(rank,), margin=0.0, reference_logprobs=(0.0,))
