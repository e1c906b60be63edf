"""Rows with tools and calls: the template gets them and they are learnt, or the row is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf_ray.data.examples import load_demonstrations, load_feedback, load_rankings
from rlhf_ray.data.rows import DataError
from tests.unit.data.templates import tokenizer_of

FUNCTION = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "int"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TEXT_CALL = {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "1+1?"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2"}
ANSWER = {"role": "assistant", "content": "Two"}
CHAT = [USER, CALLS, RESULT, ANSWER]
CALL_TEXT = '<call>{"name": "add", "arguments": {"a": 1}}</call>'
SYSTEM = f"<pad>{json.dumps(TOOLS)}<eos>"
PROMPT = f"{SYSTEM}<user>user\n1+1?<eos>\n<user>assistant\n"


def learnt(sample, tokenizer) -> str:
    return tokenizer.decode(sample.token_ids[sample.loss_mask])


def whole(sample, tokenizer) -> str:
    return tokenizer.decode(sample.token_ids)


@pytest.mark.parametrize("template", ["whole", "marked"])
@pytest.mark.parametrize("tools", [TOOLS, [FUNCTION], json.dumps(TOOLS), json.dumps([FUNCTION])])
@pytest.mark.parametrize(
    "calls",
    [
        CALLS,
        {**CALLS, "content": None},
        {"role": "assistant", "tool_calls": [CALL], "name": None},
        {**CALLS, "tool_calls": [TEXT_CALL], "content": None},
        {**CALLS, "tool_calls": [CALL["function"]]},
        {**CALLS, "tool_calls": json.dumps([TEXT_CALL])},
    ],
)
def test_every_form_of_tools_and_calls_is_learnt(source, template, tools, calls) -> None:
    tokenizer = tokenizer_of(template)
    rows = [{"tools": tools, "messages": [USER, calls, RESULT, ANSWER]}]
    (sample,) = load_demonstrations(source(rows), tokenizer, seed=0).train
    assert learnt(sample, tokenizer) == f"{CALL_TEXT}<eos>Two<eos>"
    assert whole(sample, tokenizer) == (
        f"{PROMPT}{CALL_TEXT}<eos>\n<user>tool\n2<eos>\n<user>assistant\nTwo<eos>\n"
    )


def test_a_conversation_may_end_with_calls(source) -> None:
    tokenizer = tokenizer_of("whole")
    rows = [{"tools": TOOLS, "messages": [USER, {**CALLS, "content": "Let me see. "}, RESULT]}]
    loaded = load_demonstrations(source(rows), tokenizer, seed=0)
    assert learnt(loaded.train[0], tokenizer) == f"Let me see. {CALL_TEXT}<eos>"
    assert "messages after the last answer that is learnt are left out: 1 rows" in loaded.describe()


def test_a_thought_before_a_call_in_the_last_turn(source) -> None:
    """Templates of thinking models write an earlier call without the empty thought of a last."""
    tokenizer = tokenizer_of("thinks")
    rows = [{"tools": TOOLS, "messages": CHAT}]
    loaded = load_demonstrations(source(rows), tokenizer, seed=0)
    assert learnt(loaded.train[0], tokenizer) == (
        f"{CALL_TEXT}<eos><think>\n\n</think>\n\nTwo<eos>"
    )
    assert "writes text before an answer that the row does not have" in loaded.describe()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no_tools", "the row has tools, and the chat template does not write 'add'"),
        ("no_calls", "does not write the calls of tools of message 2"),
        ("no_arguments", "does not write the calls of tools of message 2"),
        ("calls_unmarked", "writes the calls of tools of message 2 outside of the answer"),
        ("two_roles", "does not write the calls of tools|leaves out message 3 .*'tool'"),
    ],
)
def test_a_template_that_drops_them_is_refused(source, template: str, message: str) -> None:
    rows = [{"messages": [USER, ANSWER]}, {"tools": TOOLS, "messages": CHAT}]
    tokenizer = tokenizer_of(template)
    with pytest.raises(DataError, match=rf"line 2: .*({message}).*on_bad_row=skip"):
        load_demonstrations(source(rows), tokenizer, seed=0)
    loaded = load_demonstrations(source(rows, on_bad_row="skip"), tokenizer, seed=0)
    assert len(loaded.train) == 1
    assert loaded.skipped[0].count == 1


def test_the_second_of_two_calls(source) -> None:
    other = {"function": {"name": "mul", "arguments": {}}}
    rows = [{"tools": TOOLS, "messages": [USER, {**CALLS, "tool_calls": [CALL, other]}]}]
    (sample,) = load_demonstrations(source(rows), tokenizer_of("whole"), seed=0).train
    mul = '<call>{"name": "mul", "arguments": {}}</call>'
    assert learnt(sample, tokenizer_of("whole")) == f"{CALL_TEXT}{mul}<eos>"
    with pytest.raises(DataError, match="does not write the calls"):
        load_demonstrations(source(rows), tokenizer_of("first_call"), seed=0)


def test_text_next_to_calls_is_not_dropped(source) -> None:
    said = {**CALLS, "content": "Let me see."}
    rows = [{"tools": TOOLS, "messages": [USER, said, RESULT, ANSWER]}]
    with pytest.raises(DataError, match=r"does not write the answer 'Let me see.' where it"):
        load_demonstrations(source(rows), tokenizer_of("calls_alone"), seed=0)
    rows = [{"tools": TOOLS, "messages": [USER, {**said, "weight": 0}, RESULT, ANSWER]}]
    loaded = load_demonstrations(source(rows), tokenizer_of("calls_alone"), seed=0)
    assert learnt(loaded.train[0], tokenizer_of("whole")) == "Two<eos>"
    assert "leaves out text of earlier answers, which are context: 1 rows" in loaded.describe()


class TestOtherKinds:
    """Preferences, reward models and feedback: tools and calls in prompts and answers."""

    @pytest.mark.parametrize("template", ["whole", "marked"])
    def test_rankings(self, source, template: str) -> None:
        tokenizer = tokenizer_of(template)
        calls = {**CALLS, "content": None, "tool_calls": [TEXT_CALL]}
        rows = [
            {"prompt": [USER], "chosen": [calls], "rejected": "Three", "tools": TOOLS},
            {
                "prompt": "1+1?",
                "ranking": [calls, "Two", ANSWER | {"content": "3"}],
                "tools": TOOLS,
            },
            {"prompt": CHAT[:3], "chosen": "Two", "rejected": "Three", "tools": TOOLS},
        ]
        pair, ranking, after = load_rankings(source(rows), tokenizer, seed=0).train
        assert [learnt(a, tokenizer) for a in pair.answers] == [f"{CALL_TEXT}<eos>", "Three<eos>"]
        assert len(ranking.answers) == 3
        for answer in (*pair.answers, *ranking.answers, *after.answers):
            assert whole(answer, tokenizer).startswith(PROMPT)
        assert CALL_TEXT in whole(after.answers[0], tokenizer)
        assert learnt(after.answers[0], tokenizer) == "Two<eos>"

    def test_feedback(self, source) -> None:
        tokenizer = tokenizer_of("whole")
        row = {"prompt": [USER], "answer": CALLS, "good": True, "tools": json.dumps(TOOLS)}
        (example,) = load_feedback(source([row]), tokenizer, seed=0).train
        assert whole(example.sample, tokenizer) == f"{PROMPT}{CALL_TEXT}<eos>\n"
        assert learnt(example.sample, tokenizer) == f"{CALL_TEXT}<eos>"

    def test_demonstration_of_prompt_and_answer(self, source) -> None:
        tokenizer = tokenizer_of("whole")
        rows = [{"prompt": CHAT[:3], "answer": "Two", "functions": TOOLS}]
        named = source(rows, tools_column="functions")
        (sample,) = load_demonstrations(named, tokenizer, seed=0).train
        assert learnt(sample, tokenizer) == "Two<eos>"
        assert whole(sample, tokenizer).startswith(PROMPT)

    @pytest.mark.parametrize("template", ["no_tools", "no_calls"])
    def test_refused(self, source, template: str) -> None:
        tokenizer = tokenizer_of(template)
        row: dict[str, Any] = {"prompt": CHAT[:3], "tools": TOOLS}
        for load, more in (
            (load_rankings, {"chosen": "Two", "rejected": "Three"}),
            (load_feedback, {"answer": "Two", "good": True}),
            (load_demonstrations, {"answer": "Two"}),
        ):
            with pytest.raises(DataError, match="the chat template does not write"):
                load(source([{**row, **more}]), tokenizer, seed=0)

    def test_answers_that_are_no_answers(self, source) -> None:
        row = {"prompt": "q", "chosen": CALLS, "rejected": {**ANSWER, "weight": 0}}
        with pytest.raises(DataError, match=r"'rejected' has a message .* weight 0"):
            load_rankings(source([row]), tokenizer_of("whole"), seed=0)
        row = {"prompt": "q", "chosen": CALLS, "rejected": CALLS}
        with pytest.raises(DataError, match="have the same answer"):
            load_rankings(source([row]), tokenizer_of("whole"), seed=0)


def test_without_a_template_tools_have_no_place(source) -> None:
    rows = [{"prompt": "1+1?", "answer": "Two", "tools": TOOLS}]
    plain = {"apply_chat_template": False}
    with pytest.raises(DataError, match=r"line 1: the row has tools .*examples.tools_column=null"):
        load_demonstrations(source(rows, **plain), tokenizer_of("whole"), seed=0)
    loaded = load_demonstrations(
        source(rows, **plain, tools_column=None), tokenizer_of("whole"), seed=0
    )
    assert whole(loaded.train[0], tokenizer_of("whole")) == "1+1?Two<eos>"
    rows = [{"prompt": "1+1?", "answer": CALLS}]
    with pytest.raises(DataError, match=r"line 1: the answer is a message, but .*is false"):
        load_demonstrations(source(rows, **plain), tokenizer_of("whole"), seed=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": "hammer"}, "'tools' must be a list, or JSON text.*examples.tools_column=null"),
        ({"tools": [{"type": "web_search"}]}, "tool 1 in column 'tools' is not a function"),
        ({"tools": [{"name": "x", "parameters": {"properties": {"b": None}}}]}, "'b' .* is null"),
        ({"messages": [USER, {**CALLS, "tool_calls": [{"function": {}}]}]}, "call 1 of message 2"),
        (
            {"messages": [USER, {**CALLS, "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
            "the arguments of call 1 of message 2 .* must be an object",
        ),
        (
            {"messages": [USER, {**CALLS, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "the arguments of call 1 of message 2 .* are not JSON",
        ),
        ({"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, "only assistants call tools"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "function_call": CALL}]},
            "'function_call', an older form; write it as 'tool_calls'",
        ),
    ],
)
def test_wrong_forms(source, row: dict[str, Any], message: str) -> None:
    rows = [{"messages": [USER, ANSWER], **row}]
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        load_demonstrations(source(rows), tokenizer_of("whole"), seed=0)


@pytest.mark.parametrize("part", ["the sum", "'a'"])
def test_a_template_that_writes_less_than_the_tools(source, part) -> None:
    tokenizer = tokenizer_of("whole")
    written = "{{ t.function.name }}" + ("{{ t.function.parameters }}" if "sum" in part else "")
    written += "{{ t.function.description }}" if part == "'a'" else ""
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ tools | tojson }}", f"{{% for t in tools %}}{written}{{% endfor %}}"
    )
    tools = [{**FUNCTION, "description": "the sum"}]
    rows = [{"messages": [USER, ANSWER], "tools": tools}]
    with pytest.raises(DataError, match=f"does not write '{part.strip(chr(39))}'"):
        load_demonstrations(source(rows), tokenizer, seed=0)


@pytest.mark.parametrize("template", ["whole", "marked"])
def test_many_calls_are_rendered_a_few_times(source, template, monkeypatch) -> None:
    """Two renderings for each answer find the answers; the check of calls needs a few in all."""
    rendered = 0
    tokenizer = tokenizer_of(template)
    render = type(tokenizer).apply_chat_template

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return render(*args, **named)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", counted)
    chat = [USER, *(message for _ in range(40) for message in (CALLS, RESULT)), ANSWER]
    examples = source([{"messages": chat}], max_tokens=10_000)
    loaded = load_demonstrations(examples, tokenizer, seed=0)
    assert learnt(loaded.train[0], tokenizer).count("<call>") == 40
    assert rendered < 2 * 41 + 12


def test_a_call_outside_of_one_of_many_answers(source) -> None:
    tokenizer = tokenizer_of("whole")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}",
        "{% if m.role == 'tool' %}{{ messages[loop.index0 - 1].tool_calls[0].function | tojson }}"
        "{% endif %}{{ m.content }}",
    )
    chat = [USER, CALLS, RESULT, CALLS, RESULT, ANSWER]
    with pytest.raises(DataError, match=r"calls of tools of message 2 outside of the answer"):
        load_demonstrations(source([{"messages": chat}]), tokenizer, seed=0)
