"""The rubric: question to a judge about a response, and the score in its judgement."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.groups.reward import JudgeConfig
from rlhf_ray.data.examples.spans import special_texts
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.plain_texts import PlainEncoder
from rlhf_ray.data.rows import BadCell
from rlhf_ray.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACE = re.compile(r"\{(prompt|response|answer)\}")
_MAX_SHOWN_CHARACTERS = 200


class NoScore(ValueError):  # noqa: N818 - it reads as a sentence
    """The question cannot be asked, or the judgement has no score."""


class Rubric:
    """Makes the questions to a judge.

    Args:
        tokenizer: tokenizer of the judge; its chat template is used if it has one.
    """

    def __init__(self, judge: JudgeConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self._judge = judge
        self._tokenizer = tokenizer
        self._specials = special_texts(tokenizer)

    def question(self, prompt: Prompt, response: str) -> tuple[int, ...]:
        """The question about a response, as token ids.

        Raises:
            NoScore: a placeholder of the rubric cannot be filled in, the template refuses the
                question, or the question is too long.
            DataError: the template is broken.
        """
        filled = self._filled_in(prompt, response)
        has_template = self._tokenizer.chat_template is not None
        try:
            text = (
                apply_template(
                    [{"role": "user", "content": filled}],
                    self._tokenizer,
                    add_generation_prompt=True,
                )
                if has_template
                else filled
            )
        except BadCell as error:
            raise NoScore(f"the question cannot be rendered: {error}") from error
        if has_template:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            (ids,) = PlainEncoder(self._tokenizer).encode([text])
        limit = self._judge.max_prompt_tokens
        if len(ids) > limit:
            raise NoScore(
                f"the question to the judge has {len(ids)} tokens, more than "
                f"reward.judge.max_prompt_tokens={limit}; raise it"
            )
        return tuple(ids)

    def _filled_in(self, prompt: Prompt, response: str) -> str:
        # One pass over the rubric: braces in an inserted text are not placeholders.
        def value(match: re.Match[str]) -> str:
            if match[1] == "response":
                return self._harmless(response)
            if match[1] == "prompt":
                return self._harmless(_conversation(prompt))
            if prompt.answer is None:
                raise NoScore("the rubric has {answer}, and the prompt has no reference answer")
            return self._harmless(prompt.answer)

        return _PLACE.sub(value, self._judge.asked)

    def _harmless(self, text: str) -> str:
        """Break up special tokens, with which a text could end its turn and speak for the judge."""
        for special in self._specials:
            text = text.replace(special, f"{special[:1]} {special[1:]}")
        return text


def read_score(judge: JudgeConfig, said: str) -> float:
    """The score in a judgement, mapped to 0 to 1 if the settings say so.

    Raises:
        NoScore: there is no score, or it is outside of the range.
    """
    # The last match: a judge may mention other numbers before its verdict.
    last = None
    for match in re.finditer(judge.pattern, said):
        last = match
    found = last[1] if last else None
    if found is None:
        raise NoScore(f"reward.judge.pattern has no match in {_shown(said)}")
    try:
        score = float(found)
    except ValueError:
        raise NoScore(f"{found!r} in {_shown(said)} is not a number") from None
    low, high = judge.min_score, judge.max_score
    if not low <= score <= high:
        raise NoScore(f"the score {score:g} in {_shown(said)} is not from {low:g} to {high:g}")
    return (score - low) / (high - low) if judge.scale else score


def mean_score(judge: JudgeConfig, judgements: Sequence[str]) -> float:
    """The mean of the judgements that have a score.

    Raises:
        NoScore: none has; why the first has none.
    """
    scores: list[float] = []
    problems: list[NoScore] = []
    for said in judgements:
        try:
            scores.append(read_score(judge, said))
        except NoScore as problem:
            problems.append(problem)
    if not scores:
        raise problems[0]
    return math.fsum(scores) / len(scores)


def _conversation(prompt: Prompt) -> str:
    """The prompt as a text: the single user message, or all messages with their roles."""
    messages: Sequence[dict[str, Any]] = prompt.messages
    if not messages:
        return prompt.text
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _shown(said: str) -> str:
    """The end of a judgement, where the score should be."""
    return repr(said[-_MAX_SHOWN_CHARACTERS:])
