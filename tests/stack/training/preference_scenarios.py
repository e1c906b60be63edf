"""Scenarios of a policy that learns from preferences. See `scenarios`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from rlhf_ray.config.groups.fit import PreferenceConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.objectives.feedback import BAD, GOOD, Judged, mismatched_pairs, spread_feedback
from rlhf_ray.objectives.preference_batches import PreferenceGroup, spread_preference_groups
from rlhf_ray.records.preferences import Feedback, PreferenceSamples
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.training.roles.preference_trainer import FeedbackTrainer, PreferenceTrainer
from tests.stack.training.rank import LEARNER, TOTAL_OPTIMIZER_STEPS, Rank, record_gradients
from tests.stack.training.samples import LENGTHS

# Samples that are answers to one prompt, best first.
RANKINGS = ((0, 3), (1, 3), (4, 1, 0))
IS_GOOD = (True, False, True, False, False)
# Three answers of 12 tokens in a forward pass.
MAX_TOKENS = 36
BETA = 0.3
DPO = PreferenceConfig(beta=BETA, sft_coefficient=0.5)
KTO = PreferenceConfig(loss="kto", beta=BETA, desirable_weight=2.0)


def answers_of(data: dict[str, torch.Tensor]) -> list[LabelledTokens]:
    ids, masks = data["token_ids"].split(LENGTHS), data["loss_mask"].split(LENGTHS)
    return [LabelledTokens(token_ids=i, loss_mask=m) for i, m in zip(ids, masks, strict=True)]


def shift(token_ids: torch.Tensor) -> float:
    """Difference between the made-up reference and the policy, in nats, per answer.

    Another for every length: at a tie rounding would decide which answer is preferred.
    """
    return float(token_ids.sum() % 7) - 3.0 + len(token_ids) / 20


def mismatched_of(answers: list[LabelledTokens]) -> list[LabelledTokens]:
    rows = [Feedback(sample=own, is_good=g) for own, g in zip(answers, IS_GOOD, strict=True)]
    return mismatched_pairs(rows, max_tokens=max(LENGTHS))


def _preference_group(answers: list[LabelledTokens], ranks: tuple[int, ...]) -> PreferenceGroup:
    none = (0.0,) * len(answers)
    return PreferenceGroup(answers=tuple(answers), ranks=ranks, margin=0.0, reference_logprobs=none)


def _role(here: Rank, role: type, preference: PreferenceConfig, **settings: Any) -> Any:
    return here._started(
        role(
            preference=preference,
            training=TrainingConfig(**here._role_settings(LEARNER | settings)),
            model=here.model,
            total_optimizer_steps=TOTAL_OPTIMIZER_STEPS,
            seed=0,
            timeout_s=60.0,
        )
    )


def _scored(role: Any, samples: PreferenceSamples) -> PreferenceSamples:
    scores = torch.tensor(role.score_answers(samples), dtype=torch.float64)
    return replace(samples, reference_logprobs=scores)


def _shifted(samples: PreferenceSamples) -> PreferenceSamples:
    """Samples with a reference that is not the policy itself."""
    parts = samples.token_ids.split(samples.lengths.tolist())
    shifts = torch.tensor([shift(part) for part in parts], dtype=torch.float64)
    return replace(samples, reference_logprobs=samples.reference_logprobs + shifts)


def _learnt(role: Any, own: Any, shifted: Callable[[Any], Any]) -> dict[str, Any]:
    gradients = record_gradients(role)
    at_start = role.evaluate(own)
    samples = shifted(own)
    before = role.evaluate(samples)
    metrics = role.update([samples])
    return {
        "at_start": at_start,
        "before": before,
        "metrics": metrics,
        "after": role.evaluate(samples),
        "gradient": gradients[0],
    }


def prefer(here: Rank, **settings: Any) -> dict[str, Any]:
    """Score, evaluate against the policy itself, learn against another reference."""
    answers = answers_of(here.data)
    preference_groups = [
        _preference_group([answers[i] for i in own], tuple(range(len(own)))) for own in RANKINGS
    ]
    samples = spread_preference_groups(preference_groups, here.plan(MAX_TOKENS))[here.share]
    with _role(
        here, PreferenceTrainer, DPO, max_tokens_per_micro_batch=MAX_TOKENS, **settings
    ) as role:
        own = _scored(role, samples)
        learnt = _learnt(role, own, _shifted)
        return {**learnt, "num_own_tokens": int(samples.loss_mask.sum())}


def judge(here: Rank, **settings: Any) -> dict[str, Any]:
    """Score, evaluate and learn from feedback."""
    answers = answers_of(here.data)
    rows = [
        Judged(
            answer=_preference_group([own], (GOOD if is_good else BAD,)),
            mismatched=_preference_group([other], (GOOD,)),
        )
        for own, other, is_good in zip(answers, mismatched_of(answers), IS_GOOD, strict=True)
    ]
    samples = spread_feedback(rows, here.plan(MAX_TOKENS))[here.share]
    with _role(
        here, FeedbackTrainer, KTO, max_tokens_per_micro_batch=MAX_TOKENS, **settings
    ) as role:
        own = replace(
            samples,
            judged=_scored(role, samples.judged),
            mismatched=_scored(role, samples.mismatched),
        )

        def shifted(feedback: Any) -> Any:
            return replace(
                feedback,
                judged=_shifted(feedback.judged),
                mismatched=_shifted(feedback.mismatched),
            )

        learnt = _learnt(role, own, shifted)
        return {**learnt, "num_own_tokens": int(samples.judged.loss_mask.sum())}


Scenario = Callable[[Rank], dict[str, Any]]
COMPARED: dict[int, dict[str, Scenario]] = {
    1: {"prefer": prefer, "judge": judge},
    2: {
        f"{name}_zero_{stage}": lambda r, scenario=scenario, stage=stage: scenario(
            r, zero_stage=stage
        )
        for name, scenario in (("prefer", prefer), ("judge", judge))
        for stage in (0, 3)
    },
}
