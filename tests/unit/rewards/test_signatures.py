"""Reading names from a source file while other threads of the process are busy."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from rlhf_ray.rewards.signatures import read_names

SOURCE = "def reward(sample, *, scale=1.0):\n    return scale\n"


def failing_parse(times: int) -> Any:
    """`ast.parse` as it is beside a thread that prints a traceback: it fails at first."""
    parse, left = ast.parse, [times]

    def parse_late(*arguments: Any) -> ast.Module:
        if left[0] > 0:
            left[0] -= 1
            raise SystemError("AST constructor recursion depth mismatch (before=150, after=30)")
        return parse(*arguments)

    return parse_late


def test_a_thread_that_prints_a_traceback_at_the_same_time_disturbs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ast, "parse", failing_parse(times=2))
    names = read_names(SOURCE, "reward.py")
    assert list(names.definitions) == ["reward"]


def test_a_parser_that_always_fails_is_not_called_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ast, "parse", failing_parse(times=1000))
    with pytest.raises(SystemError, match="recursion depth"):
        read_names(SOURCE, "reward.py")
