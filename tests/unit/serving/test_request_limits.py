"""Limits of single requests."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rlhf_ray.chat.endpoint import _TOO_LONG
from rlhf_ray.config.groups.deploy import ServeLimitsConfig
from rlhf_ray.serving.openai_errors import Refused
from rlhf_ray.serving.request_limits import (
    CHARACTERS_PER_TOKEN,
    check_roles,
    check_size,
    check_tools,
    constraint_of,
    size_of,
)


def check(fields: dict[str, Any], *, context: int | None = 100, **limits: Any) -> int:
    return check_size(
        fields, ServeLimitsConfig(**limits), context_tokens=context, max_requests=1024
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, 1),
        ({"messages": [], "n": 5}, 5),
        ({"messages": [], "n": None}, 1),
        ({"prompt": "a", "n": 2, "best_of": 4}, 4),
        ({"prompt": [1, 2, 3], "n": 2}, 2),
        ({"prompt": ["a", "b", "c"]}, 3),
        ({"prompt": [[1, 2], [3]], "n": 2}, 4),
        ({"prompt": []}, 1),
        ({"prompt": "a", "n": "many"}, 1),
        ({"prompt": "a", "n": "100"}, 100),
        ({"prompt": "a", "n": 100.0}, 100),
        ({"prompt": "a", "n": 1.5}, 1),
        ({"prompt": "a", "n": []}, 1),
        ({"prompt": "a", "n": True}, 1),
        ({"prompt": "a", "n": -3}, 1),
    ],
)
def test_answers(fields, expected):
    assert check(fields) == expected


@pytest.mark.parametrize("n", [129, "129", 129.0, " 129 ", 10**4299])
def test_too_many_answers(n):
    with pytest.raises(Refused, match=r"\(2 prompts, n=.*, and may ask for 128: the smaller of"):
        check({"prompt": ["a", "b"], "n": n})


def test_many_fields():
    with pytest.raises(Refused, match="the request has 5,000 fields"):
        check({str(index): 1 for index in range(5000)})


def test_characters_of_the_context():
    most = 100 * CHARACTERS_PER_TOKEN
    assert check({"prompt": "x" * most}) == 1
    assert check({"prompt": [7] * 100}) == 1
    for fields in (
        {"prompt": "x" * (most + 1)},
        {"prompt": ["a", "x" * (most + 1)]},
        {"prompt": [7] * 101},
        {"tokens": [7] * 101},
        {"suffix": "x" * (most + 1)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * most}]}]},
        {"messages": [], "chat_template_kwargs": {"a": "x" * (most + 1)}},
        {"messages": [], "documents": ["x" * (most + 1)]},
    ):
        with pytest.raises(Refused, match=r"more than 1,600 characters") as refused:
            check(fields)
        assert refused.value.status == 400
        assert any(words in str(refused.value) for words in _TOO_LONG), "stage=chat drops a turn"


def test_characters_that_are_configured():
    assert check({"prompt": "x" * 5000}, prompt_characters=5000) == 1
    with pytest.raises(Refused, match="more than 5,000 characters"):
        check({"prompt": "x" * 5001}, context=None, prompt_characters=5000)
    assert check({"prompt": "x" * 10**6}, context=None) == 1


def test_prompts_together():
    prompts = ["x" * 50_000] * 20
    assert check({"prompt": prompts}, context=10_000) == 20
    with pytest.raises(Refused, match=r"1,000,000 characters together; send them in several"):
        check({"prompt": [*prompts, "x"]}, context=10_000)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": ""}] * 50},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 50}]},
        {"messages": [], "tools": [{"type": "function", "function": {}}] * 50},
        {"prompt": "", "documents": [[[]]] * 50},
    ],
)
def test_parts(fields):
    assert check(fields, context=None) == 1
    with pytest.raises(Refused, match=r"serve\.limits\.prompt_parts=40 parts"):
        check(fields, context=None, prompt_parts=40)


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("stop", ["a"] * 5000, "items"),
        ("logit_bias", {str(index): 1 for index in range(5000)}, "items"),
        ("stop_token_ids", [1] * 5000, "items"),
        ("bad_words", ["a"] * 5000, "items"),
        ("structured_outputs", {"choice": ["a"] * 5000}, "items"),
        ("structured_outputs", {"grammar": "a" * 70_000}, "characters"),
        ("response_format", {"json_schema": {"a" * 70_000: 1}}, "characters"),
        ("a_field_that_vllm_will_have", "a" * 70_000, "characters"),
        ("user", "a" * 70_000, "characters"),
    ],
)
def test_other_fields(name, value, key):
    with pytest.raises(Refused, match=rf"'{name}' has more than serve\.limits\.field_{key}="):
        check({"prompt": "a", name: value})


def test_the_cost_of_a_refusal_is_bounded():
    value = [[1] * 1000 for _ in range(5000)]
    began = time.process_time()
    size = size_of(value, most_characters=10_000, most_items=10_000)
    assert size.items > 10_000
    assert time.process_time() - began < 0.3, "all of it are five million numbers"


def test_roles():
    chat = {"messages": [{"role": "user"}, {"role": "ipython"}, {}, "text"]}
    check_roles(chat, ["user", "ipython"])
    check_roles({"messages": "text"}, ["user"])
    for role in ("ipython", ["user"], 7, "x" * 100):
        with pytest.raises(Refused, match=r"messages\[0\] has the role .*none of user, tool"):
            check_roles({"messages": [{"role": role}]}, ["user", "tool"])


TOOLS = [{"type": "function", "function": {"name": "search"}}]


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": None}])
def test_tools_need_a_parser(choice):
    check_tools({"tools": TOOLS, **choice}, parses_calls=True)
    with pytest.raises(Refused) as refused:
        check_tools({"tools": TOOLS, **choice}, parses_calls=False)
    assert refused.value.status == 400
    for words in ("generation.extra_engine_args", "enable_auto_tool_choice", "tool_call_parser"):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "search"}}},
        {"tools": []},
        {"tools": None},
        {},
    ],
)
def test_other_requests_need_none(fields):
    check_tools(fields, parses_calls=False)


def test_constraints():
    assert constraint_of({"structured_outputs": {"regex": "a"}}) == "structured_outputs"
    assert constraint_of({"response_format": {"type": "json_object"}}) == "response_format"
    assert constraint_of({"tool_choice": {"type": "function"}}) == "tool_choice"
    free = {"tool_choice": "none", "response_format": {"type": "text"}, "structured_outputs": None}
    assert constraint_of(free) is None
