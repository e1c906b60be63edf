"""The built-in rewards against hand-made cases."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from rlhf_ray.rewards import RewardSample, StepRewards
from rlhf_ray.rewards.answers import to_message
from rlhf_ray.rewards.builtin.arithmetic import Arithmetic, last_number
from rlhf_ray.rewards.builtin.exact_match import ExactMatch
from rlhf_ray.rewards.builtin.length import Length
from rlhf_ray.rewards.builtin.lines import Lines
from rlhf_ray.rewards.builtin.regular_expression import RegularExpression


def sample(response: str, answer: str | None = None) -> RewardSample:
    return RewardSample(
        prompt_id="e0-r7",
        sample_index=0,
        prompt="What is 3+4?",
        response=response,
        answer=answer,
        source="sums",
        columns={},
        finish_reason="stop",
    )


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [("7", "7", 1.0), (" 7\n", "7 ", 1.0), ("7.", "7", 0.0), ("", "7", 0.0), ("paris", "Paris", 0)],
)
def test_exact_match(response: str, answer: str, value: float) -> None:
    assert ExactMatch()(sample(response, answer)) == value


def test_exact_match_can_ignore_case() -> None:
    assert ExactMatch(ignore_case=True)(sample("PARIS", "Paris")) == 1.0


@pytest.mark.parametrize("reward", [ExactMatch(), Arithmetic()])
def test_missing_answer_is_an_error_and_no_low_score(reward: ExactMatch | Arithmetic) -> None:
    with pytest.raises(ValueError, match=r"e0-r7 has no reference answer.*data\.answer_column"):
        reward(sample("7"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", "7"),
        ("3 + 4 = 7.", "7"),
        ("It is -5", "-5"),
        ("x=-5", "-5"),
        ("(-5)", "-5"),
        ("minus \u22125", "-5"),
        ("+5", "5"),
        ("12-5", "5"),
        ("(2+3)-5", "5"),
        ("1,234", "1234"),
        ("-1,234,567.50 dollars", "-1234567.50"),
        ("1,23", "23"),
        ("1,2345", "2345"),
        ("1234,567", "567"),
        ("3, 4, 5", "5"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("pi is 3.14.", "3.14"),
        ("5%", "5"),
        ("9" * 60, "9" * 60),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "seven", "- , .", "\u0667"])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("response", "answer", "tolerance", "value"),
    [
        ("The answer is 7.0", "7", 0.0, 1.0),
        ("1,000", "#### 1000", 0.0, 1.0),
        ("7 or 8", "7", 0.0, 0.0),
        ("I do not know.", "7", 0.0, 0.0),
        ("0.3", "0.30", 0.0, 1.0),
        ("3.14", "3.14159", 0.01, 1.0),
        ("3.1", "3.14159", 0.01, 0.0),
        ("1" + "0" * 40 + "1", "1" + "0" * 40 + "2", 0.0, 0.0),
    ],
)
def test_arithmetic(response: str, answer: str, tolerance: float, value: float) -> None:
    assert Arithmetic(tolerance=tolerance)(sample(response, answer)) == value


def test_arithmetic_refuses_an_answer_without_a_number() -> None:
    with pytest.raises(ValueError, match="'seven' of prompt e0-r7 holds no number"):
        Arithmetic()(sample("7", "seven"))


@pytest.mark.parametrize(
    ("measure", "response", "value"),
    [
        ("match", "abc 12", 1.0),
        ("match", "abc", 0.0),
        ("full", " 12 ", 1.0),
        ("full", "12a", 0.0),
        ("fraction", "12ab", 0.5),
        ("fraction", "1a2b345c", 5 / 8),
        ("fraction", "", 0.0),
    ],
)
def test_regular_expression(measure: str, response: str, value: float) -> None:
    assert RegularExpression(pattern=r"[0-9]+", measure=measure)(sample(response)) == value


def test_regular_expression_can_ignore_case() -> None:
    assert RegularExpression(pattern="yes", ignore_case=True)(sample("YES")) == 1.0


@pytest.mark.parametrize(
    ("arguments", "num_characters", "value"),
    [
        ({"target": 10}, 10, 1.0),
        ({"target": 10}, 5, 0.5),
        ({"target": 10}, 15, 0.5),
        ({"target": 10}, 20, 0.0),
        ({"target": 10}, 99, 0.0),
        ({"target": 10, "slack": 2}, 11, 0.5),
        ({"limit": 10}, 0, 1.0),
        ({"limit": 10}, 10, 1.0),
        ({"limit": 10, "slack": 4}, 11, 0.75),
        ({"limit": 10, "slack": 4}, 14, 0.0),
    ],
)
def test_length(arguments: dict[str, int], num_characters: int, value: float) -> None:
    assert Length(**arguments)(sample("x" * num_characters)) == pytest.approx(value)


def test_length_in_words() -> None:
    assert Length(target=2, unit="words")(sample("two  words")) == 1.0


@pytest.mark.parametrize(
    ("response", "rewards", "ends"),
    [
        ("1+1=2\nso it is 2", (1.0, 0.0), (6, 16)),
        ("no\n3=3\n", (0.0, 1.0), (3, 7)),
        # White space belongs to the line before it, at the start to the first one.
        ("\n \n3=3\n\n\nno\n\n", (1.0, 0.0), (9, 13)),
        ("3=3", (1.0,), (3,)),
        ("no\n ", (0.0,), (4,)),
        ("", (0.0,), (0,)),
        (" \n\n", (0.0,), (3,)),
    ],
)
def test_lines(response: str, rewards: tuple[float, ...], ends: tuple[int, ...]) -> None:
    expected = StepRewards(rewards=rewards, ends=ends)
    assert Lines(pattern="=")(sample(response)) == expected
    assert "failed" not in to_message(expected, response)


@pytest.mark.parametrize(
    ("arguments", "rewards"),
    [
        ({"pattern": "a"}, (1.0, 1.0, 0.0, 0.0)),
        ({"pattern": "a", "ignore_case": True}, (1.0, 1.0, 1.0, 0.0)),
        ({"pattern": "a", "measure": "full"}, (1.0, 0.0, 0.0, 0.0)),
        ({"pattern": "a", "scale": "response"}, (0.25, 0.25, 0.0, 0.0)),
    ],
)
def test_lines_by_measure_and_scale(arguments: dict[str, Any], rewards) -> None:
    assert Lines(**arguments)(sample(" a \nab\nA\nb")).rewards == rewards


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExactMatch(ignore_case="yes"), "ignore_case is 'yes'; it must be true or false"),
        (lambda: RegularExpression(pattern=""), "pattern is ''"),
        (lambda: RegularExpression(pattern="(a"), r"pattern '\(a' is not a regular expression"),
        (lambda: RegularExpression(pattern="a", measure="share"), "one of match, full, fraction"),
        (lambda: Lines(pattern="("), r"pattern '\(' is not a regular expression"),
        (lambda: Lines(pattern="a", measure="fraction"), "measure is 'fraction'.* match, full"),
        (lambda: Lines(pattern="a", scale="all"), "scale is 'all'; it must be one of line, resp"),
        (lambda: Arithmetic(tolerance=-1), "tolerance is -1; it must be a number, at least 0"),
        (lambda: Arithmetic(tolerance=float("nan")), "tolerance is nan"),
        (lambda: Length(), "give exactly one of the two"),
        (lambda: Length(target=5, limit=5), "give exactly one of the two"),
        (lambda: Length(target=0), "target is 0; it must be a whole number, at least 1"),
        (lambda: Length(limit=5, slack=0), "slack is 0"),
        (lambda: Length(limit=5, unit="tokens"), "unit is 'tokens'; it must be one of"),
    ],
)
def test_wrong_arguments_are_refused_with_a_fix(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
