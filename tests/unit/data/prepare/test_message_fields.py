"""Fields of messages and tools of rows, through the whole stage and into the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.data.examples import load_demonstrations, load_rankings
from rlhf_ray.data.prompts.load import load_prompts
from tests.unit.data.prepare.helpers import Result, assistant, source, user, write_lines
from tests.unit.data.templates import tokenizer_of

pytestmark = pytest.mark.unit_slow

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": "one"}}}
TEXT_CALL = {"id": "c1", "function": {"name": "add", "arguments": '{"a": "one"}'}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [TEXT_CALL], "reasoning_content": "hm"}
RESULT = {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "two"}
CHAT = [*user("1+1?"), ASKS, RESULT, {**assistant("It is two"), "weight": 1, "mine": {"x": 1}}]
KEPT = [
    *user("1+1?"),
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
    RESULT,
    {**assistant("It is two"), "weight": 1, "mine": {"x": 1}},
]
DEMO = {"kind": "demonstration"}


def fields_of(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in record if name not in ("id", "task", "source")}


def test_every_field_is_kept(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "tools": json.dumps(TOOLS)}]
    path = write_lines(tmp_path / "calls.jsonl", rows)
    every = ["prepare.mend_encoding=true", "prepare.duplicates=near", "prepare.personal_data=mask"]
    result = Result(tmp_path / "out", *source("s", path, **DEMO), *every)
    (record,) = result.lines("demonstration")
    assert fields_of(record) == {"messages": KEPT, "tools": TOOLS}
    assert result.removed == []
    # The output as a source gives the same again.
    path = result.output / "demonstration/train.jsonl"
    again = Result(tmp_path / "again", *source("s", path, **DEMO))
    assert fields_of(again.lines("demonstration")[0]) == fields_of(record)


def test_the_next_stage_learns_the_calls(tmp_path: Path) -> None:
    chat = [CHAT[0], {**ASKS, "reasoning_content": None}, *CHAT[2:]]
    path = write_lines(tmp_path / "calls.jsonl", [{"messages": chat, "tools": TOOLS}])
    result = Result(tmp_path / "out", *source("s", path, **DEMO))
    examples = ExamplesConfig(path=str(result.output / "demonstration/train.jsonl"), eval_share=0.0)
    tokenizer = tokenizer_of("whole")
    (sample,) = load_demonstrations(examples, tokenizer, seed=0).train
    assert tokenizer.decode(sample.token_ids).startswith(f"<pad>{json.dumps(TOOLS)}<eos>")
    call = '<call>{"name": "add", "arguments": {"a": "one"}}</call>'
    learnt = tokenizer.decode(sample.token_ids[sample.loss_mask])
    assert learnt == f"{call}<eos>It is two<eos>"


def test_sharegpt(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "1+1?"},
        {"from": "gpt", "value": "Two", "weight": 0, "note": "first"},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes"},
    ]
    rows = [{"conversations": turns, "tools": json.dumps(TOOLS), "url": "x"}]
    path = write_lines(tmp_path / "share.jsonl", rows)
    result = Result(tmp_path / "out", *source("s", path, layout="sharegpt"))
    (record,) = result.lines("demonstration")
    assert record["messages"][1] == {**assistant("Two"), "weight": 0, "note": "first"}
    assert record["tools"] == TOOLS
    assert result.report["sources"]["s"]["found"] == {"column 'url' not kept": 1}


def test_columns_that_are_not_kept_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a?", "answer": "b", "meta": {"x": 1}, "url": None},
        {"prompt": "c?", "answer": "d", "meta": 2, "url": ""},
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    result = Result(tmp_path / "out", *source("s", path, kind="prompt"))
    assert result.report["sources"]["s"]["found"] == {"column 'meta' not kept": 2}


@pytest.mark.parametrize("part", ["answer", "prompt"])
def test_kinds_with_a_prompt_keep_tools_and_calls(tmp_path: Path, part: str) -> None:
    row = {"prompt": KEPT[:3], "chosen": "Two", "rejected": "Three", "tools": TOOLS}
    path = write_lines(tmp_path / "rows.jsonl", [row])
    settings = source("s", path, kind="preference", columns={"tools": "tools"})
    (record,) = Result(tmp_path / "out", *settings).lines("preference")
    assert record["prompt"] == KEPT[:3]
    assert record["tools"] == TOOLS
    tokenizer = tokenizer_of("thinks")
    prepared = str(tmp_path / "out/preference/train.jsonl")
    if part == "answer":
        examples = ExamplesConfig(path=prepared, eval_share=0.0)
        assert len(load_rankings(examples, tokenizer, seed=0).train) == 1
    else:
        (prompt,) = load_prompts(DataConfig(path=prepared), tokenizer, seed=0).prompts
        assert prompt.tools == tuple(TOOLS)


def test_conversions(tmp_path: Path) -> None:
    earlier = [*user("Hi"), assistant("Hello"), *user("1+1?")]
    row = {"prompt": earlier, "chosen": "Two", "rejected": "Three", "tools": TOOLS}
    path = write_lines(tmp_path / "rows.jsonl", [row])
    columns = {"kind": "preference"}
    split = Result(tmp_path / "out", *source("s", path, **columns), "prepare.split=[1,0,0]")
    (record,) = split.lines("sft")
    # Only the answer of the preference is learnt, as it is there.
    context = [earlier[0], {**earlier[1], "weight": 0}, earlier[2]]
    assert record["messages"] == [*context, assistant("Two")]
    assert record["tools"] == TOOLS
    demo = write_lines(tmp_path / "demo.jsonl", [{"messages": CHAT, "tools": TOOLS}])
    result = Result(tmp_path / "rl", *source("s", demo, **DEMO), "prepare.split=[0,0,1]")
    (record,) = result.lines("rl")
    assert (record["prompt"], record["answer"], record["tools"]) == (KEPT[:3], "It is two", TOOLS)


def test_answers_that_would_lose_their_calls_are_removed(tmp_path: Path) -> None:
    other = {"messages": [*user("2+2?"), assistant("Four")]}
    demo = [{"messages": CHAT[:2], "tools": TOOLS}, other]
    path = write_lines(tmp_path / "demo.jsonl", demo)
    result = Result(tmp_path / "rl", *source("s", path, **DEMO), "prepare.split=[0,0,1]")
    assert "calls tools" in result.reasons["broken conversation"]
    pair = {"chosen": CHAT[:2], "rejected": [*user("1+1?"), assistant("Three")]}
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = write_lines(tmp_path / "pair.jsonl", [good, pair])
    result = Result(tmp_path / "pair", *source("s", path, kind="preference"))
    assert "'reasoning_content', 'tool_calls'" in result.reasons["broken conversation"]


def test_cleaning_reads_and_changes_the_texts_of_all_fields(tmp_path: Path) -> None:
    mail = "joe@example.org"
    call = {"function": {"name": "mail", "arguments": {"to": mail, "text": "schÃ¶n"}}}
    asks = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": mail}
    chat = [*user("Write to him"), asks]
    path = write_lines(tmp_path / "mail.jsonl", [{"messages": chat}])
    masks = ["prepare.personal_data=mask", "prepare.mend_encoding=true"]
    (record,) = Result(tmp_path / "out", *source("s", path, **DEMO), *masks).lines("demonstration")
    said = record["messages"][1]
    assert said["tool_calls"][0]["function"]["arguments"] == {
        "to": "<MAIL_ADDRESS>",
        "text": "schön",
    }
    assert said["tool_calls"][0]["function"]["name"] == "mail"
    assert said["reasoning_content"] == "<MAIL_ADDRESS>"


def test_rows_that_differ_in_their_calls_are_no_duplicates(tmp_path: Path) -> None:
    def row(argument: str, tool: str = "add") -> dict[str, Any]:
        call = {"function": {"name": "add", "arguments": {"a": argument}}}
        asks = {"role": "assistant", "content": "", "tool_calls": [call]}
        return {"messages": [*user("1+1?"), asks], "tools": [{"name": "add"}, {"name": tool}]}

    rows = [row("x"), row("y"), row("x"), row("x", "mul")]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    result = Result(tmp_path / "out", *source("s", path, **DEMO), "prepare.duplicates=exact")
    assert len(result.lines("demonstration")) == 3
    assert len(result.removed) == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({**assistant("x"), "weight": 0.5}, "'weight' of message 2"),
        ({**assistant("x"), "tool_calls": [{"name": "f", "arguments": "{"}]}, "are not JSON"),
        ({**assistant("x"), "train": False}, "'train', which is not read here"),
    ],
)
def test_wrong_fields(tmp_path: Path, message: dict[str, Any], words: str) -> None:
    rows = [{"messages": [*user("q"), assistant("a")]}, {"messages": [*user("q"), message]}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    skip = "prepare.on_bad_row=skip"
    result = Result(tmp_path / "out", *source("s", path, **DEMO), skip)
    assert words in result.reasons["broken row"]
