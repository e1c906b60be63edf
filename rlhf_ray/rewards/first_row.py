"""Reward functions on the first rows, before a worker starts.

An error in a function would show only when the first samples are scored, after the models have been
loaded. So every function is called on the first row in a process like the one that it will run in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.config.reward_entries import read_functions
from rlhf_ray.records import Prompt
from rlhf_ray.rewards.answers import Answer, outcome
from rlhf_ray.rewards.functions.containment import containment_of
from rlhf_ray.rewards.functions.process import FunctionProcess
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.rewards.protocol import RewardSample
from rlhf_ray.rewards.worker import reward_sample

# A function may treat tasks differently: the first row of each is tried, up to this many.
_MAX_TASKS = 8
_MAX_SHOWN_CHARACTERS = 60


def try_first_rows(
    reward: RewardConfig,
    prompt_sets: Sequence[Sequence[Prompt]],
    *,
    report: Callable[[str], None],
) -> None:
    """Call every function once on the first row of every task, in every set of prompts.

    The response is the reference answer of the row, or its question where it has none: a text of
    the task. What cannot be tried (a reward model, a service, a judge) is said.

    Args:
        report: takes lines for people.

    Raises:
        RequestError: a function fails; has the error with its file and line.
    """
    for part in reward.scorers:
        report(f"{part.group} ({part.name}) is first asked when samples are there")
    functions = read_functions(reward.functions, reward.scorers)
    if not functions:
        return
    if not reward.try_first_row:
        report("reward functions are first called when samples are there: reward.try_first_row")
        return
    rows = [row for prompts in prompt_sets for row in _first_of_each_task(prompts)]
    samples = [
        reward_sample(prompt, index=0, response=_plausible(prompt), finish_reason="stop")
        for prompt in rows
    ]
    process = FunctionProcess(functions, containment_of(reward), timeout_s=reward.timeout_s)
    try:
        scored = _call(process, samples, [entry.name for entry in functions], reward)
    finally:
        process.close()
    for prompt, values in zip(rows, scored, strict=True):
        shown = ", ".join(f"{name} {outcome(value):g}" for name, value in values.items())
        report(f"reward functions on {_place(prompt)}: {shown}")
    if process.num_ended_processes:
        report(
            f"reward functions left {process.num_ended_processes} processes behind without a "
            "parent; such processes are ended after every call"
        )


def _call(
    process: FunctionProcess,
    samples: Sequence[RewardSample],
    names: Sequence[str],
    reward: RewardConfig,
) -> list[dict[str, Answer]]:
    """Values by name of the function, for each sample.

    Raises:
        RequestError: a function cannot be loaded, or fails.
    """
    scored: list[dict[str, Answer]] = []
    for number, sample in enumerate(samples):
        items = [(number, function) for function in range(len(names))]
        try:
            found = process.run(samples, items)
            if reward.on_failure == "retry" and any(isinstance(f, ItemFailure) for f in found):
                found = process.run(samples, items)
        except RuntimeError as error:
            raise RequestError(f"reward.functions: {error}") from error
        values: dict[str, Answer] = {}
        for name, value in zip(names, found, strict=True):
            if isinstance(value, ItemFailure):
                raise RequestError(_refusal(name, sample, value))
            values[name] = value
        scored.append(values)
    return scored


def _refusal(name: str, sample: RewardSample, failure: ItemFailure) -> str:
    response = "its reference answer" if sample.answer else "its question, for want of an answer"
    return (
        f"reward {name!r} fails on {_place(sample)} (the response is {response}, "
        f"{_shortened(sample.response)}): {failure.kind}: {failure.message}. Correct the function "
        "or its arguments; or start all the same with reward.try_first_row=false, where such "
        "samples are dropped"
    )


def _first_of_each_task(prompts: Sequence[Prompt]) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.source, prompt)
        if len(first) == _MAX_TASKS:
            break
    return list(first.values())


def _plausible(prompt: Prompt) -> str:
    content = prompt.messages[-1]["content"] if prompt.messages else prompt.text
    return prompt.answer or (content if isinstance(content, str) else prompt.text)


def _place(row: Prompt | RewardSample) -> str:
    task = f" of {row.source}" if row.source else ""
    return f"the first row{task} ({row.prompt_id})"


def _shortened(text: str) -> str:
    shown = repr(text[:_MAX_SHOWN_CHARACTERS])
    return f"{shown}..." if len(text) > _MAX_SHOWN_CHARACTERS else shown
