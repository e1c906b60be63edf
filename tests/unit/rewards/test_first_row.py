"""Reward functions on the first rows: what fails there is refused before a run starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import HttpRewardConfig, JudgeConfig, RewardConfig
from rlhf_ray.records import Prompt
from rlhf_ray.rewards.first_row import try_first_rows
from rlhf_ray.testing.fakes import make_prompt

pytestmark = pytest.mark.unit_slow

HOSTILE = str(Path(__file__).parent / "functions/hostile_rewards.py")


def row(index: int, **fields: Any) -> Prompt:
    return dataclasses.replace(make_prompt(index), **fields)


def tried(prompts: list[Prompt], *functions: Any, held_out=(), **settings: Any) -> list[str]:
    lines: list[str] = []
    reward = RewardConfig(functions=list(functions), **settings)
    try_first_rows(reward, (prompts, held_out), report=lines.append)
    return lines


@pytest.fixture
def reward_file(tmp_path: Path):
    def write(body: str) -> str:
        file = tmp_path / "reward.py"
        file.write_text(f"import time\nfrom rlhf_ray.rewards import StepRewards\n{body}\n")
        return f"{file}:f"

    return write


def test_a_function_sees_the_first_row_and_its_values_are_shown(reward_file) -> None:
    entry = reward_file(
        "def f(sample):\n"
        "    assert (sample.response, sample.finish_reason) == (sample.answer, 'stop')\n"
        "    return sample.columns['level'] + (sample.prompt == 'prompt 0')"
    )
    first = row(0, answer="42", source="sums", columns={"level": 2})
    lines = tried([first, row(1, source="sums", answer="7")], entry, "exact_match")
    assert lines == ["reward functions on the first row of sums (e0-r0): f 3, exact_match 1"]


def test_without_an_answer_the_question_is_the_response(reward_file) -> None:
    entry = reward_file("def f(sample): return sample.response in ('prompt 0', 'Why?')")
    chat = ({"role": "system", "content": "Be short"}, {"role": "user", "content": "Why?"})
    assert tried([row(0)], entry)[0].endswith(": f 1")
    assert tried([row(0, messages=chat)], entry)[0].endswith(": f 1")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def f(sample):\n    return sample.columns['levle']",
            r"reward 'f' fails on the first row of fake \(e0-r0\) \(the response is its reference "
            r"answer, '42'\): reward_error: KeyError: 'levle' \(.*/reward.py, line 4, in f\)\. "
            r"Correct the function",
        ),
        ("def f(sample): return 'x'", r"reward_error: it returned 'x' \(str\), not a number"),
        ("def f(sample): return float('nan')", "reward_not_finite: it returned nan"),
        ("def f(sample): raise KeyboardInterrupt('no')", "reward_error: KeyboardInterrupt: no"),
        ("def f(sample): return StepRewards(rewards=(1,), ends=(9,))", r"StepRewards.ends\[0\] is"),
        ("def f(sample): time.sleep(60)", "reward_timeout: .* reward.timeout_s, 0.5 s"),
        ("import os\ndef f(sample): os._exit(3)", "reward_worker_lost: .* exit status 3"),
        ("def f(sample): return bytearray(3 << 30)", "reward_limit: reward.max_memory_gib is 1"),
        ("1 / 0", "defines no 'f'|cannot be imported: ZeroDivisionError"),
        ("import os; os._exit(5)\ndef f(sample): ...", "ended while it started: exit status 5"),
    ],
)
def test_what_fails_is_refused_with_its_line(reward_file, body: str, message: str) -> None:
    entry = reward_file(body)
    with pytest.raises(RequestError, match=message):
        tried([row(0, answer="42")], entry, timeout_s=0.5, max_memory_gib=1.0)
    assert psutil.Process().children() == []


def test_a_failure_that_a_retry_mends_is_none(user_rewards, tmp_path) -> None:
    arguments = {"folder": str(tmp_path), "fail_first": 1}
    entry = {"path": f"{user_rewards}:counts_calls", "arguments": arguments}
    assert "counts_calls 1" in tried([row(0)], entry, on_failure="retry")[0]
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(RequestError, match="call 0 fails"):
        tried([row(0)], entry)


def test_the_first_row_of_every_task_and_set_is_tried(reward_file) -> None:
    entry = reward_file("def f(sample): return {'a': 1, 'b': 2}[sample.source]")
    prompts = [row(0, source="a"), row(1, source="a"), row(2, source="b")]
    held_out = [row(7, source="a")]
    lines = tried(prompts, entry, held_out=held_out)
    assert [line.rpartition(" on ")[2] for line in lines] == [
        "the first row of a (e0-r0): f 1",
        "the first row of b (e0-r2): f 2",
        "the first row of a (e0-r7): f 1",
    ]
    with pytest.raises(RequestError, match=r"the first row of c \(e0-r8\).*KeyError: 'c'"):
        tried(prompts, entry, held_out=[*held_out, row(8, source="c")])
    many = [row(index, source="a" if index < 8 else "c") for index in range(9)]
    many = [dataclasses.replace(one, source=f"{one.source}{one.seed}") for one in many]
    always = reward_file("def f(sample): return 1 / (sample.source != 'c8')")
    assert len(tried(many, always)) == 8


def test_it_can_be_switched_off(reward_file) -> None:
    lines = tried([row(0)], reward_file("def f(sample): 1 / 0"), try_first_row=False)
    assert lines == [
        "reward functions are first called when samples are there: reward.try_first_row"
    ]


def test_what_cannot_be_tried_is_said(reward_file) -> None:
    lines = tried(
        [row(0)],
        url="http://127.0.0.1:1",
        http=HttpRewardConfig(name="style"),
        judge=JudgeConfig(model="a/b"),
    )
    assert lines == [
        "reward.http (style) is first asked when samples are there",
        "reward.judge (judge) is first asked when samples are there",
    ]


def test_processes_that_a_function_leaves_are_said(tmp_path) -> None:
    arguments = {"file": str(tmp_path / "pids")}
    lines = tried([row(0)], {"path": f"{HOSTILE}:daemonises", "arguments": arguments})
    assert "left 1 processes behind" in lines[-1]
