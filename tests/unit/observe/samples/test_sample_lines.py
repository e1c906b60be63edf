"""Answers and examples on the terminal."""

from __future__ import annotations

from rlhf_ray.observe.samples.sample_lines import answer_lines, masked_example, middle_out


def test_an_answer_is_indented_and_cannot_move_the_cursor():
    shown = answer_lines(prompt="Hi", answer="a\nb\x1b[2J", reward=0.5, finish="stop", tokens=3)
    assert shown.split("\n") == [
        "  reward 0.5, 3 tokens, stop",
        "  prompt | Hi",
        "  answer | a",
        "         | b\\x1b[2J",
    ]


def test_of_a_long_text_the_middle_is_left_out():
    shown = middle_out("a" * 5000 + "b" * 5000, 100)
    assert shown == "a" * 50 + " […9,900 characters…] " + "b" * 50
    assert middle_out("short", 100) == "short"


def test_learnt_tokens_are_marked_turn_by_turn():
    mask = [False, False, True, True, False, True]
    shown = masked_example(range(6), mask, lambda ids: "".join(f"<{i}>" for i in ids))
    assert shown.split("\n") == [
        "  6 tokens, of which the 3 within «» are learnt",
        "  text   | <0><1>«<2><3>»<4>«<5>»",
    ]
