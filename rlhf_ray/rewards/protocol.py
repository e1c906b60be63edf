"""What a reward function is given and what it returns.

Imported by the process that runs the functions, so nothing here may import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSample:
    """One response and what it answers.

    Attributes:
        prompt_id: id of the prompt, unique within a run.
        sample_index: which of the prompt's samples this is.
        prompt: the prompt as the engine saw it, chat template applied.
        response: the decoded response.
        answer: the reference answer, or None where the data have none.
        source: name of the task.
        columns: the row's other columns.
        finish_reason: "stop", or "length" where the response was cut off.
    """

    prompt_id: str
    sample_index: int
    prompt: str
    response: str
    answer: str | None
    source: str
    columns: dict[str, Any]
    finish_reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRewards:
    """A reward for every step of a response (process rewards), instead of one for all of it.

    `algorithm.advantage=process` trains on the steps; everything else takes their sum.

    Attributes:
        rewards: one finite number for each step, in order; at least one step.
        ends: where each step ends, as a number of characters of the response: the first step is
            `response[:ends[0]]`, the second `response[ends[0]:ends[1]]`. They rise strictly,
            from at least 1 to at most the length of the response; the one step of an empty
            response ends at 0.
    """

    rewards: tuple[float, ...]
    ends: tuple[int, ...]


class Reward(Protocol):
    """What an entry of `reward.functions` names: a callable, or a class of such.

    A plain function may take the entry's arguments by keyword after the sample; a
    class is constructed with them once per worker, and its instance is called.
    """

    def __call__(self, sample: RewardSample, /) -> float | StepRewards:
        """The reward of one sample: a finite number, or one for every step of the response.

        An exception, a time-out, NaN or an infinity, or steps that do not fit the response
        make the sample a failure, which is counted and never trained on.
        """
        ...


def reference_answer(sample: RewardSample) -> str:
    """The sample's reference answer.

    Raises:
        ValueError: the prompt has none.
    """
    if sample.answer is None:
        raise ValueError(
            f"prompt {sample.prompt_id} has no reference answer; name the column that holds it "
            "in data.answer_column, or use a reward that needs no answer"
        )
    return sample.answer
