"""Rows and rewards of the customer service recipe."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf_ray.recipes import customer_service as task
from rlhf_ray.rewards.protocol import RewardSample

GOOD = "I am happy to help. Let me send you a new lamp today."


def sample(response: str, *, answer: str = "lamp", finish_reason: str = "stop") -> RewardSample:
    return RewardSample(
        prompt_id="p",
        sample_index=0,
        prompt="My lamp is broken.",
        response=response,
        answer=answer,
        source="requests",
        columns={},
        finish_reason=finish_reason,
    )


def test_every_demonstration_answers_its_request():
    rows = list(task.demonstrations())
    answers = [task.read_answer(row["answer"]) for row in rows]
    assert len(rows) == 8_000
    assert all(
        answer and answer.item in row["prompt"] for row, answer in zip(rows, answers, strict=True)
    )
    tones = Counter(answer.sentence_tone for answer in answers if answer)
    shares = {tone: count / len(rows) for tone, count in tones.items()}
    assert shares == pytest.approx({"helpful": 0.45, "neutral": 0.25, "rude": 0.30}, abs=0.02)


def test_the_better_answer_is_chosen_except_for_flipped_labels():
    def share_of_wrong(rows) -> float:
        ranks = [
            [answer.rank for answer in map(task.read_answer, (row["chosen"], row["rejected"]))]
            for row in rows
        ]
        assert all(chosen != rejected for chosen, rejected in ranks)
        return sum(chosen < rejected for chosen, rejected in ranks) / len(ranks)

    assert share_of_wrong(list(task.preferences())) == pytest.approx(0.05, abs=0.015)
    assert share_of_wrong(list(task.other_preferences())) == 0


def test_held_out_items_are_in_no_other_row():
    others = set(task.OTHER_ITEMS)
    words = {
        word
        for rows in (task.texts(), task.demonstrations(), task.preferences(), task.requests())
        for row in rows
        for text in row.values()
        for word in text.strip("?.").replace(".", " ").split()
    }
    assert not others & words
    assert all(any(item in row["prompt"] for item in others) for row in task.other_preferences())


def test_the_rows_are_the_same_every_time():
    for rows in (task.texts, task.demonstrations, task.preferences, task.other_preferences):
        assert list(rows()) == list(rows())


@pytest.mark.parametrize(
    ("response", "helpful", "well_formed"),
    [
        (GOOD, 1, 1),
        (f" {GOOD} ", 1, 1),
        ("I am happy to help. The lamp is in our system.", 0, 1),
        ("You again. Let me send you a new lamp today.", 0, 1),
        ("You again. Stop asking about your lamp.", 0, 1),
        ("I am happy to help. Let me send you a new desk today.", 0, 0),
        ("Let me send you a new lamp today.", 0, 0),
        (f"{GOOD} {GOOD}", 0, 0),
        ("", 0, 0),
    ],
)
def test_rewards(response, helpful, well_formed):
    assert task.is_helpful(sample(response)) == helpful
    assert task.is_well_formed(sample(response)) == well_formed


def test_an_answer_that_was_cut_off_scores_zero():
    assert task.is_helpful(sample(GOOD, finish_reason="length")) == 0
    assert task.is_well_formed(sample(GOOD, finish_reason="length")) == 0
