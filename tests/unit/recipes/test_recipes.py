"""Rows and rewards of the recipes sentiment, stories and translation."""

from __future__ import annotations

from statistics import fmean

import pytest

from rlhf_ray.models.builtin import BUILTIN_MODELS
from rlhf_ray.recipes import sentiment, stories, translation
from rlhf_ray.rewards.protocol import RewardSample


def sample(
    response: str, *, answer: str | None = None, finish_reason: str = "stop", **columns: str
) -> RewardSample:
    return RewardSample(
        prompt_id="p",
        sample_index=0,
        prompt="",
        response=response,
        answer=answer,
        source="task",
        columns=columns,
        finish_reason=finish_reason,
    )


@pytest.mark.parametrize(
    ("rows", "held_out"),
    [
        (translation.sentences, translation.held_out_sentences),
        (sentiment.requests, sentiment.held_out_requests),
        (stories.requests, stories.held_out_requests),
    ],
)
def test_held_out_prompts_differ_from_training_prompts(rows, held_out):
    prompts = {row["prompt"] for row in rows()}
    others = {row["prompt"] for row in held_out()}
    assert len(prompts) > 2 * len(others) > 20
    assert not prompts & others
    assert list(rows()) == list(rows())


@pytest.mark.parametrize("task", ["translation", "sentiment", "stories"])
def test_every_recipe_has_a_builtin_model(task):
    assert task in BUILTIN_MODELS


class TestTranslation:
    def test_every_word_is_in_training_and_among_the_held_out(self):
        words = [
            {w for row in rows() for text in row.values() for w in text.lower().strip(".").split()}
            for rows in (translation.sentences, translation.held_out_sentences)
        ]
        assert words[0] == words[1]

    def test_word_order_and_case(self):
        german = {
            row["prompt"]: row["answer"]
            for rows in (translation.sentences, translation.held_out_sentences)
            for row in rows()
        }
        assert german["The cat finds the door."] == "Die Katze findet die Tür."
        assert german["Today the man sees the apple."] == "Heute sieht der Mann den Apfel."

    def test_45_percent_of_the_demonstrations_are_right(self):
        right = {row["prompt"]: row["answer"] for row in translation.sentences()}
        rows = list(translation.demonstrations())
        share = fmean(right[row["prompt"]] == row["answer"] for row in rows)
        assert share == pytest.approx(0.45, abs=0.02)

    def test_rewards(self):
        def both(response: str, **other: str) -> tuple[float, float]:
            found = sample(response, answer="Der Hund sieht das Haus.", **other)
            return translation.is_right(found), translation.share_of_words(found)

        assert both(" Der Hund sieht das Haus.") == (1.0, 1.0)
        assert both("Der Hund sieht den Haus.") == (0.0, 0.8)
        assert both("Der Hund") == (0.0, 0.4)
        assert both("") == (0.0, 0.0)
        assert both("Der Hund sieht das Haus.", finish_reason="length")[0] == 0.0


class TestSentiment:
    def test_every_line_has_only_its_own_mood(self):
        for mood, lines in sentiment.LINES.items():
            for line in lines:
                found = sample(line.format(topic="sea"), answer=mood, topic="sea")
                assert sentiment.has_the_mood(found) == 1.0
                assert sentiment.is_well_formed(found) == 1.0
                other = sentiment.SAD if mood == sentiment.HAPPY else sentiment.HAPPY
                assert sentiment.has_the_mood(sample(line, answer=other, topic="{topic}")) <= 0.0

    def test_a_mixed_line_is_between(self):
        found = sample("I love the sea, it is cold and grey.", answer="happy", topic="sea")
        assert sentiment.has_the_mood(found) == pytest.approx(-1 / 3)
        assert sentiment.is_well_formed(found) == 0.0

    @pytest.mark.parametrize(
        ("response", "finish_reason"),
        [
            ("I love the city.", "stop"),
            ("I love the sea.", "length"),
            ("The sea.", "stop"),
            ("", "stop"),
        ],
    )
    def test_zero_without_mood_words_or_topic_or_end(self, response, finish_reason):
        found = sample(response, answer="happy", topic="sea", finish_reason=finish_reason)
        assert sentiment.has_the_mood(found) == 0.0


class TestStories:
    def test_40_percent_of_the_demonstrations_are_good(self):
        told = {row["prompt"]: row for row in stories.requests()}
        scores = [
            stories.is_perfect(
                sample(
                    row["answer"],
                    hero=told[row["prompt"]]["hero"],
                    thing=told[row["prompt"]]["thing"],
                )
            )
            for row in stories.demonstrations()
        ]
        assert fmean(scores) == pytest.approx(0.4, abs=0.02)

    @pytest.mark.parametrize(
        ("response", "virtues"),
        [
            ("A fox woke up. A friend came with a drum. And that was the end.", 4),
            ("A fox woke up. A friend came with a drum.", 3),
            ("A fox woke up. A fox woke up. And that was the end.", 2),
            ("A bear woke up. A friend came with a drum. And that was the end.", 3),
            ("", 0),
        ],
    )
    def test_virtues(self, response, virtues):
        assert stories.is_good(sample(response, hero="fox", thing="drum")) == virtues / 4

    def test_a_story_that_was_cut_off_is_not_good(self):
        good = "A fox woke up. A friend came with a drum. And that was the end."
        found = sample(good, hero="fox", thing="drum", finish_reason="length")
        assert stories.is_good(found) == 0.0
