"""Preferences from several answers to one prompt, ranked or scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.data.prepare.conversion.chats import BrokenChat
from rlhf_ray.data.prepare.conversion.contents import Preference
from rlhf_ray.data.prepare.conversion.mapping import NotBetter, as_number, number_in
from rlhf_ray.data.prepare.conversion.messages import Messages
from rlhf_ray.data.rows import BadCell, Row


def preference_of_ranking(prompt: Messages, answers: Sequence[str]) -> Preference:
    """Make a preference of answers from best to worst, without ties.

    Raises:
        BrokenChat: fewer than two answers.
    """
    _check_count(answers)
    pairs = [(i, j) for i in range(len(answers)) for j in range(i + 1, len(answers))]
    return _preference(prompt, answers, pairs, margin=None)


def preference_of_scores(
    prompt: Messages, answers: Sequence[str], scores: Sequence[Any]
) -> Preference:
    """Make a preference of scored answers; higher is better, and equal scores make no pair.

    `margin` is the difference between the best and the worst score.

    Raises:
        BadCell: the number of scores differs from that of answers, or a score is not a number.
        BrokenChat: fewer than two answers.
        NotBetter: all scores are equal.
    """
    if len(scores) != len(answers):
        raise BadCell(
            f"the row has {len(answers)} answers and {len(scores)} scores; give one for each answer"
        )
    numbers = [as_number(score, "a score") for score in scores]
    _check_count(answers)
    order = sorted(range(len(answers)), key=lambda index: -numbers[index])
    ranked = [numbers[index] for index in order]
    if ranked[0] == ranked[-1]:
        raise NotBetter(f"all answers have the same score, {ranked[0]:g}, so that none is better")
    pairs = [
        (i, j)
        for i in range(len(ranked))
        for j in range(i + 1, len(ranked))
        if ranked[i] > ranked[j]
    ]
    return _preference(
        prompt, [answers[index] for index in order], pairs, margin=ranked[0] - ranked[-1]
    )


def margin_of_pair(
    row: Row, *, chosen_score: str, rejected_score: str, margin: str | None = None
) -> float | None:
    """Read by how much the chosen answer is better: a margin, or the difference of two scores.

    Args:
        chosen_score, rejected_score, margin: columns; a column may be missing or empty.

    Raises:
        BadCell: a cell is not a number.
        NotBetter: the score of the chosen answer is not above that of the rejected one, or the
            margin is negative. Such a pair would teach the wrong order, or none.
    """
    better, worse = number_in(row, chosen_score), number_in(row, rejected_score)
    given = None if margin is None else number_in(row, margin)
    if given is not None and given < 0:
        raise NotBetter(f"the margin is {given:g}, so that the chosen answer is the worse one")
    if better is None or worse is None:
        return given
    if better <= worse:
        raise NotBetter(
            f"the chosen answer has the score {better:g} and the rejected one {worse:g}, so that "
            f"the chosen one is {'not better' if better == worse else 'the worse one'}"
        )
    return better - worse if given is None else given


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
        raise BrokenChat(f"a ranking needs at least 2 answers; it has {len(answers)}")
