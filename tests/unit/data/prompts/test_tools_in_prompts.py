"""Prompts with tools and calls, for reinforcement learning and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.data.prompts.load import PromptSet, load_prompts
from rlhf_ray.data.rows import DataError
from tests.unit.data.templates import tokenizer_of

TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": '{"a": 1}'}}],
}
USER = {"role": "user", "content": "1+1?"}
RESULT = {"role": "tool", "content": "2", "tool_call_id": "c"}
SYSTEM = f"<pad>{json.dumps(TOOLS)}<eos>"
CALL_TEXT = '<call>{"name": "add", "arguments": {"a": 1}}</call>'


@pytest.fixture
def load(tmp_path: Path):
    """Prompts of rows with one of the templates."""

    def call(rows: list[Any], template: str = "whole", **settings: Any) -> PromptSet:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return load_prompts(DataConfig(path=str(path), **settings), tokenizer_of(template), seed=0)

    return call


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [{"name": "add"}]])
def test_the_prompt_has_the_tools(load, tools) -> None:
    for prompt in ("1+1?", [USER]):
        (loaded,) = load([{"prompt": prompt, "tools": tools}]).prompts
        assert loaded.text == f"{SYSTEM}<user>user\n1+1?<eos>\n<user>assistant\n"
        assert loaded.tools == tuple(TOOLS)
        # Reward functions see the column, too.
        assert loaded.columns == {"tools": tools}


def test_the_prompt_has_calls_and_their_results(load) -> None:
    prompts = load(
        [{"prompt": [USER, CALLS, RESULT], "functions": TOOLS}], tools_column="functions"
    )
    (prompt,) = prompts.prompts
    assert prompt.text == (
        f"{SYSTEM}<user>user\n1+1?<eos>\n<user>assistant\n{CALL_TEXT}<eos>\n"
        "<user>tool\n2<eos>\n<user>assistant\n"
    )
    assert prompt.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", **CALL}],
    }
    assert "does not write the field 'tool_call_id' of messages: 1 rows" in prompts.describe()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no_tools", "the row has tools, and the chat template does not write 'add'"),
        ("no_calls", "does not write the calls of tools of message 2"),
        ("two_roles", "the calls of tools of message 2|leaves out message 3"),
    ],
)
def test_a_template_that_drops_them_is_refused(load, template: str, message: str) -> None:
    rows = [{"prompt": "2"}, {"prompt": [USER, CALLS, RESULT], "tools": TOOLS}]
    with pytest.raises(DataError, match=rf"line 2: .*({message}).*data.on_bad_row=skip"):
        load(rows, template)
    assert load(rows, template, on_bad_row="skip").skipped[0].count == 1


def test_a_template_that_drops_a_message(load) -> None:
    rows = [{"prompt": [{"role": "system", "content": "Be brief."}, USER]}]
    with pytest.raises(DataError, match=r"leaves out message 1 .*'system'"):
        load(rows, "two_roles")


def test_thoughts_of_earlier_answers_are_noted(load) -> None:
    answer = {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    prompts = load([{"prompt": [USER, answer, USER]}], "thinks")
    assert "hm" not in prompts.prompts[0].text
    assert "leaves out text of earlier answers, which are context: 1 rows" in prompts.describe()


def test_tools_without_a_template(load) -> None:
    rows = [{"prompt": "1+1?", "tools": TOOLS}]
    with pytest.raises(DataError, match=r"line 1: the row has tools .*data.tools_column=null"):
        load(rows, apply_chat_template=False)
    (prompt,) = load(rows, apply_chat_template=False, tools_column=None).prompts
    assert (prompt.text, prompt.tools) == ("1+1?", ())


def test_weights_of_a_prompt(load) -> None:
    chat = [USER, {"role": "assistant", "content": "3", "weight": 0}, USER]
    (prompt,) = load([{"prompt": chat}]).prompts
    assert prompt.messages[1] == {"role": "assistant", "content": "3"}
    chat[1]["weight"] = 1
    with pytest.raises(DataError, match=r"message 2 .*'weight' 1, but nothing in a prompt"):
        load([{"prompt": chat}])
