"""Interface of a reward function: the sample that it gets, the reward that it returns.

Imported by the process that runs the functions, so nothing here may import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSample:
    """One response with its prompt.

    Attributes:
        prompt_id: id of the prompt, unique within a run.
        sample_index: position among the prompt's samples.
        prompt: the prompt as the engine saw it, chat template applied.
        response: the decoded response.
        answer: the reference answer, or None if the data have none.
        source: name of the task.
        columns: the row's other columns.
        finish_reason: "stop", or "length" if the response was cut off.
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
    """One reward per step of a response (process rewards), instead of one for the whole response.

    `algorithm.advantage=process` trains on the steps; everything else uses their sum.

    Attributes:
        rewards: one finite number for each step, in order; at least one step.
        ends: end of each step, as a number of characters of the response: the first step is
            `response[:ends[0]]`, the second `response[ends[0]:ends[1]]`. They rise strictly,
            from at least 1 to at most the length of the response; the one step of an empty
            response ends at 0.
    """

    rewards: tuple[float, ...]
    ends: tuple[int, ...]


class Reward(Protocol):
    """A reward function, named by an entry of `reward.functions`.

    An entry may name a function, which gets the entry's arguments by keyword after the sample, or a
    class, which is constructed with the arguments once per worker and whose instance is called.
    """

    def __call__(self, sample: RewardSample, /) -> float | StepRewards:
        """Reward of one sample: a finite number, or one for every step of the response.

        An exception, a time-out, NaN or an infinity, or steps that do not fit the response
        make the sample a failure, which is counted and never trained on.
        """
        ...


def reference_answer(sample: RewardSample) -> str:
    """The sample's reference answer.

    Raises:
        ValueError: the prompt has none, or an empty one, which an empty response would match.
    """
    if sample.answer is None or not sample.answer.strip():
        raise ValueError(
            f"prompt {sample.prompt_id} has no reference answer; name the column that holds it "
            "in data.answer_column, or use a reward that needs no answer"
        )
    return sample.answer
