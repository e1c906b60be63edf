"""The built-in rewards against hand-made cases."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from typing import Any

import pytest

from rlhf_ray.rewards import RewardSample, StepRewards
from rlhf_ray.rewards.answers import to_message
from rlhf_ray.rewards.builtin.arithmetic import Arithmetic
from rlhf_ray.rewards.builtin.exact_match import ExactMatch
from rlhf_ray.rewards.builtin.length import Length
from rlhf_ray.rewards.builtin.lines import Lines
from rlhf_ray.rewards.builtin.regular_expression import RegularExpression
from rlhf_ray.rewards.numerals import last_number, numerals, read_number


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
        ("1,23", "1.23"),
        ("1,2345", "1.2345"),
        ("1234,567", "1234.567"),
        ("0,125", "0.125"),
        ("1.234,50", "1234.5"),
        ("1.234.567", "1234567"),
        ("1'234.5", "1234.5"),
        ("1_000", "1000"),
        ("1\u00a0234", "1234"),
        ("1\u202f234,5", "1234.5"),
        ("1{,}234", "1234"),
        ("1\\,234", "1234"),
        ("1e5", "100000"),
        ("1.5E-3", "0.0015"),
        ("1.e+05", "100000"),
        ("1.5 \u00d7 10^3", "1500"),
        ("1.5\\times 10^{-3}", "0.0015"),
        ("3*10**5", "300000"),
        ("0x1F", "31"),
        ("2eggs", "2"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("-\\$1,000", "-1000"),
        ("\u20ac 5,00", "5"),
        ("-.5", "-0.5"),
        ("wait...5", "5"),
        ("= - 5", "-5"),
        ("3 - 5", "5"),
        ("\n- 5", "5"),
        ("\u20135", "-5"),
        ("10\u20135", "5"),
        ("3/4", "3/4"),
        ("-3 / 4", "-3/4"),
        ("1 1/2", "3/2"),
        ("\u00bd", "1/2"),
        ("1\u00bd", "3/2"),
        ("-\\frac{1}{2}", "-1/2"),
        ("\\boxed{-7}", "-7"),
        ("50 %", "50"),
        ("3, 4, 5", "5"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("pi is 3.14.", "3.14"),
        ("5%", "5"),
        ("9" * 60, "9" * 60),
        (r"\frac12", "1/2"),
        (r"\frac{1}2", "1/2"),
        (r"\frac 1 2", "1/2"),
        (r"\cfrac{3}{4}", "3/4"),
        (r"3\frac{1}{2}", "7/2"),
        (r"-3 \frac12", "-7/2"),
        ("0b101", "5"),
        ("0o17", "15"),
        ("1.5 million", "1500000"),
        ("3 hundred thousand people", "300000"),
        ("25 cm^2", "25"),
        ("25 m2", "25"),
        (r"5\text{ cm}^{2}", "5"),
        ("10 m/s^2.", "10"),
        ("7 kg m^{-2}", "7"),
        ("x_1 = 7 for x_2 and x_{3}", "7"),
        (r"90^{\circ}", "90"),
        ("5^{th}", "5"),
        ("it is **42** apples", "42"),
        (r"6\times7", "7"),
        (r"\boxed5", "5"),
        ("USD5", "5"),
        ("\uff11\uff12", "12"),
        ("\u7b54\u6848\u662f5", "5"),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert last_number(text) == Fraction(number)


@pytest.mark.parametrize(
    "text",
    [
        "1e5x",
        "1e5.5",
        "1e999999999",
        "1,234,5",
        "1,23,456",
        "1.2.3",
        "12:30",
        "2024/01/05",
        "10^5",
        "3**2",
        "10\u2075",
        "10 000",
        "3/0",
        "1 3/2",
        "-$-5",
        "9" * 5000,
        r"\sqrt{16}",
        r"\sqrt 2",
        r"\sqrt[3]{8}",
        "\u221a2",
        "sqrt(16)",
        r"\log_{2} 8",
        r"\binom{5}{2}",
        r"2\sqrt{3}",
        r"2\pi",
        "2\u03c0",
        r"2 \cdot \pi",
        r"\pi/2",
        "x/2",
        "5/x",
        "5/(3+2)",
        "2x",
        "3 + 4i",
        r"\frac{1}{2}\pi",
        r"\frac{\sqrt{3}}{2}",
        r"\frac{2}{3",
        r"1.5\frac{1}{2}",
        r"2^\frac{1}{2}",
        "1^2^3",
        "(1+5)^2",
        "5k",
        "3M",
        "5bn",
        "5\u4e07",
        "5 and 1/2",
        "5 and a half",
        "2 million 500 thousand",
        "\u00b15",
        r"5 \pm 0.1",
        "--5",
        "H2O",
        "v1.2",
        "\u06625",
    ],
)
def test_a_number_without_a_certain_reading_is_not_read(text: str) -> None:
    """Neither the half of it nor the number before it."""
    assert last_number(f"first 7, then {text}") is None
    assert Arithmetic()(sample(f"7 {text}", "7")) == 0.0


def test_a_number_alone_and_numbers_in_a_text() -> None:
    assert read_number(" -$1,234.50 ") == Fraction("-1234.5")
    assert [read_number(text) for text in ("5 kg", "1 2", "nan", "inf", "")] == [None] * 5
    found = [(n.start, n.end, n.value) for n in numerals("a 1,5 and 12:30")]
    assert found == [(2, 5, Fraction("1.5")), (10, 15, None)]


@pytest.mark.unit_slow
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "1,",
            "9",
            "- ",
            "\\frac{",
            "1 ",
            "1/",
            "$",
            "1e",
            "0x",
            "(= ",
            "1 1/",
            "1{,}",
            "1^",
            "-",
        ),
        *(r"\sqrt[", "sqrt(", "5/(", r"\frac{1}2", "5 million ", r"\text{", "1 000 ", r"\log_"),
    ],
)
def test_long_responses_are_read_in_linear_time(piece: str) -> None:
    started = time.process_time()
    last_number(piece * 50_000)
    assert time.process_time() - started < 5.0


@pytest.mark.parametrize("answer", ["", " \n"])
@pytest.mark.parametrize("reward", [ExactMatch(), Arithmetic()])
def test_an_empty_answer_is_missing(reward: ExactMatch | Arithmetic, answer: str) -> None:
    with pytest.raises(ValueError, match="e0-r7 has no reference answer"):
        reward(sample("", answer))


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
        ("It is 1e5.", "100,000", 0.0, 1.0),
        ("3/4", "0.75", 0.0, 1.0),
        ("-$5", "5", 0.0, 0.0),
        ("1,5", "5", 0.0, 0.0),
        ("1" + "0" * 40 + "1", "1" + "0" * 40 + "2", 0.0, 0.0),
        ("I have 2 cats", "25 cm^2", 0.0, 0.0),
        ("the area is 25 cm^2", "25", 0.0, 1.0),
        ("12", r"\frac12", 0.0, 0.0),
    ],
)
def test_arithmetic(response: str, answer: str, tolerance: float, value: float) -> None:
    assert Arithmetic(tolerance=tolerance)(sample(response, answer)) == value


@pytest.mark.parametrize("answer", ["seven", r"\sqrt{16}"])
def test_arithmetic_refuses_an_answer_without_a_number(answer: str) -> None:
    words = re.escape(f"{answer!r} of prompt e0-r7 holds no number")
    with pytest.raises(ValueError, match=words):
        Arithmetic()(sample("7", answer))


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
