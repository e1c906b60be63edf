"""The rubric: question to a judge about a response, and the score in its judgement."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.groups.reward import JudgeConfig
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.rows import BadCell
from rlhf_ray.data.tokens.encoding import encode, most_characters
from rlhf_ray.data.tokens.plain_texts import PlainEncoder
from rlhf_ray.data.tokens.special_texts import broken_up
from rlhf_ray.data.tokens.turn_ends import turn_tokens
from rlhf_ray.records import Prompt
from rlhf_ray.rewards.numerals import numerals, read_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACE = re.compile(r"\{(prompt|response|answer)\}")
# A scale behind a score, or the end of a range of scores.
_SCALE = re.compile(
    r"\s*(?:/|out of\b|of\b)\s*(?P<highest>[0-9]+(?:[.,][0-9]+)?)"
    r"|\s?(?P<percent>%)|[-\u2013][0-9]+"
)
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
        self._turn_tokens = turn_tokens(tokenizer)

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
        limit = self._judge.max_prompt_tokens
        if len(text) > most_characters(self._tokenizer, limit):
            raise NoScore(
                f"the question to the judge has {len(text)} characters, more than "
                f"reward.judge.max_prompt_tokens={limit} tokens can hold; raise it"
            )
        if has_template:
            (ids,) = encode([text], self._tokenizer, add_special_tokens=False)
        else:
            (ids,) = PlainEncoder(self._tokenizer).encode([text])
        if isinstance(ids, BadCell):
            raise NoScore(f"the question cannot be tokenised: {ids}")
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
            if prompt.answer is None or not prompt.answer.strip():
                raise NoScore("the rubric has {answer}, and the prompt has no reference answer")
            return self._harmless(prompt.answer)

        return _PLACE.sub(value, self._judge.asked)

    def _harmless(self, text: str) -> str:
        """Break up the tokens with which a text could end its turn and speak for the judge."""
        return broken_up(text, self._turn_tokens)


def read_score(judge: JudgeConfig, said: str) -> float:
    """The score in a judgement, mapped to 0 to 1 if the settings say so.

    Raises:
        NoScore: there is no score, or it is outside of the range.
    """
    # The last match: a judge may mention other numbers before its verdict.
    last = None
    for match in re.finditer(judge.pattern, said):
        last = match
    if last is None or last[1] is None:
        raise NoScore(f"reward.judge.pattern has no match in {_shown(said)}")
    found = last[1].strip().removesuffix(".")
    number = read_number(found)
    if number is None:
        raise NoScore(f"{last[1]!r} in {_shown(said)} is not a number")
    low, high = judge.min_score, judge.max_score
    _check_whole(said, last, high)
    # Compared before it becomes a float, which cannot hold every number.
    if not low <= number <= high:
        raise NoScore(f"the score {found} in {_shown(said)} is not from {low:g} to {high:g}")
    score = float(number)
    return (score - low) / (high - low) if judge.scale else score


def _check_whole(said: str, match: re.Match[str], high: float) -> None:
    """Refuse a score that is a part of a longer number, or is on another scale.

    A scale behind the score is accepted if it is the configured one: "7/10" with max_score=10.

    Raises:
        NoScore: shows the whole.
    """
    start, end = match.span(1)
    for numeral in numerals(said):
        if numeral.start < end and numeral.end > start:
            start, end = min(start, numeral.start), max(end, numeral.end)
    behind = _SCALE.match(said, match.end(1))
    scale = read_number(behind["highest"] or "") if behind else None
    if behind and behind["percent"]:
        scale = Fraction(100)
    if scale == Fraction(high):
        end = min(end, match.end(1))
    # Characters that the pattern itself matches are what the user expects around a score.
    elif start < match.start() or end > match.end() or (behind and behind.end() > match.end()):
        whole = said[start : max(end, behind.end() if behind else 0)]
        raise NoScore(
            f"{match[1]!r} in {_shown(said)} is not the whole score, which is {whole!r}; "
            f"reward.judge.max_score is {high:g}"
        )


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
    if len(messages) == 1 and not prompt.tools:
        return messages[0]["content"]
    parts = [f"{message['role']}: {_said(message)}" for message in messages]
    if prompt.tools:
        parts.insert(0, f"tools: {json.dumps(prompt.tools, ensure_ascii=False)}")
    return "\n\n".join(parts)


def _said(message: dict[str, Any]) -> str:
    """The text of a message, and its calls of tools as JSON."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    said = [message["content"], *(json.dumps(call, ensure_ascii=False) for call in calls)]
    return "\n".join(part for part in said if part)


def _shown(said: str) -> str:
    """The end of a judgement, where the score should be."""
    return repr(said[-_MAX_SHOWN_CHARACTERS:])
