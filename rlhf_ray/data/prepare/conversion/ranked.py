"""Several answers to one prompt, in an order or with a score each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.data.prepare.conversion.chats import BrokenChat
from rlhf_ray.data.prepare.conversion.contents import Messages, Preference
from rlhf_ray.data.prepare.conversion.mapping import as_number
from rlhf_ray.data.rows import BadCell


def preference_of_ranking(prompt: Messages, answers: Sequence[str]) -> Preference:
    """Answers from best to worst, no two of the same rank.

    Raises:
        BrokenChat: there are fewer than two.
    """
    _check_count(answers)
    pairs = [(i, j) for i in range(len(answers)) for j in range(i + 1, len(answers))]
    return _preference(prompt, answers, pairs, margin=None)


def preference_of_scores(
    prompt: Messages, answers: Sequence[str], scores: Sequence[Any]
) -> Preference:
    """Answers with a score each, higher is better; equal scores say nothing of their order.

    `margin` is the distance between the best and the worst score.

    Raises:
        BadCell: there is not one number for each answer.
        BrokenChat: fewer than two answers, or all scores are equal.
    """
    if len(scores) != len(answers):
        raise BadCell(f"has {len(answers)} answers and {len(scores)} scores")
    numbers = [as_number(score, "a score") for score in scores]
    _check_count(answers)
    order = sorted(range(len(answers)), key=lambda index: -numbers[index])
    ranked = [numbers[index] for index in order]
    if ranked[0] == ranked[-1]:
        raise BrokenChat("all answers have the same score, so that none is preferred")
    pairs = [
        (i, j)
        for i in range(len(ranked))
        for j in range(i + 1, len(ranked))
        if ranked[i] > ranked[j]
    ]
    return _preference(
        prompt, [answers[index] for index in order], pairs, margin=ranked[0] - ranked[-1]
    )


def _preference(
    prompt: Messages,
    answers: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    *,
    margin: float | None,
) -> Preference:
    is_list = len(answers) > 2
    return Preference(
        prompt=prompt,
        chosen=answers[0],
        rejected=answers[-1],
        margin=margin,
        ranking=tuple(answers) if is_list else None,
        ranking_pairs=tuple(pairs) if is_list else None,
    )


def _check_count(answers: Sequence[str]) -> None:
    if len(answers) < 2:
        raise BrokenChat(f"a ranking needs at least two answers; it has {len(answers)}")
