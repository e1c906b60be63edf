"""Encoding of a prompt and its answers with another model's template and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rlhf_ray.data.chat_fields import (
    REASONING_FIELDS,
    THOUGHT_BEGINS,
    THOUGHT_ENDS,
    Message,
    Tool,
)
from rlhf_ray.data.examples.labels import label_texts
from rlhf_ray.data.examples.spans import MarkedText, mark_answers, mark_plain
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.rendering.chat import RenderedChat
from rlhf_ray.data.rendering.check import check_rendering
from rlhf_ray.data.rows import BadCell
from rlhf_ray.data.tokens.encoding import encode
from rlhf_ray.data.tokens.plain_texts import PlainEncoder
from rlhf_ray.data.tokens.special_texts import broken_up, special_texts
from rlhf_ray.data.tokens.turn_ends import turn_tokens
from rlhf_ray.records.supervised import LabelledTokens, num_scored_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Placeholder for an empty answer, whose place in the rendered text could not be found.
_SOMETHING = "x"


def encode_answers(
    messages: Sequence[Message],
    answers: Sequence[str],
    finished: Sequence[bool],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tools: Sequence[Tool] = (),
    opens_thought: bool = False,
) -> list[LabelledTokens | BadCell]:
    """Encode the prompt with each answer, up to the end of the answer; the loss mask is the answer.

    A finished answer ends with the token that ends a turn, as in the training of a reward model. An
    answer that was cut off ends with its text.

    A model wrote the answers, and learns to write what scores high. So a special token, or another
    that the template writes, is broken up where an answer spells it: it could end its turn and
    write the next ones. The same holds for earlier answers in the prompt. A template may leave out
    the thought at the beginning of an answer, but nothing else: the end of a thought that never
    began is broken up too.

    Args:
        messages: the prompt as a chat that ends where the answer begins.
        tools: functions that the answers may call.
        opens_thought: the prompt ends with the beginning of a thought.

    Returns:
        the tokens of each answer, or the reason why it cannot be rendered.
    """
    try:
        _check_prompt(messages, tools, tokenizer)
    except BadCell as error:
        return [error for _ in answers]
    turns = turn_tokens(tokenizer)
    messages = [_harmless(message, turns) for message in messages]
    marked: list[MarkedText | BadCell] = []
    for answer, is_finished in zip(answers, finished, strict=True):
        try:
            own = _harmless_text(answer, turns, tokenizer)
            text = _answered(messages, own, tokenizer, tools)
            if not _is_written(own, text, opens_thought=opens_thought):
                text = _answered(messages, broken_up(own, THOUGHT_ENDS), tokenizer, tools)
            marked.append(text if is_finished else _without_end(text, tokenizer))
        except BadCell as error:
            marked.append(error)
    texts = [text for text in marked if isinstance(text, MarkedText) and text.answers]
    labelled = iter(label_texts(texts, tokenizer))
    rows: list[LabelledTokens | BadCell] = []
    for text in marked:
        if isinstance(text, BadCell):
            rows.append(text)
        elif text.answers:
            row = next(labelled)
            rows.append(row if isinstance(row, BadCell) else _up_to_the_end(row))
        else:
            rows.append(_prompt_alone(text, tokenizer))
    return rows


def _check_prompt(
    messages: Sequence[Message], tools: Sequence[Tool], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a template that leaves out messages, tools or calls of the prompt.

    Raises:
        BadCell: see `check_rendering`.
    """
    if tokenizer.chat_template is None or not messages:
        return
    text = apply_template(messages, tokenizer, add_generation_prompt=True, tools=tools)
    chat = RenderedChat(messages=messages, tools=tools, text=text, learnt={}, for_answer=True)
    check_rendering(chat, tokenizer)


def _harmless(message: Message, turns: Sequence[str]) -> Message:
    if message["role"] != "assistant":
        return message
    texts = {name: message[name] for name in ("content", *REASONING_FIELDS) if name in message}
    return {**message, **{name: broken_up(text, turns) for name, text in texts.items()}}


def _harmless_text(answer: str, turns: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """The answer with broken tokens of turns; without a template it may end with its own end."""
    end = str(tokenizer.eos_token)
    if tokenizer.chat_template is None and answer.endswith(end):
        return broken_up(answer.removesuffix(end), turns) + end
    return broken_up(answer, turns)


def _is_written(answer: str, text: MarkedText, *, opens_thought: bool) -> bool:
    """Whether the whole answer is written, or only a thought at its beginning is left out."""
    if opens_thought or answer.lstrip().startswith(THOUGHT_BEGINS):
        return True
    own = "".join(text.text[start:stop] for start, stop in text.answers)
    return "".join(answer.split()) in "".join(own.split())


def _answered(
    messages: Sequence[Message],
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Tool],
) -> MarkedText:
    """Render the conversation with only the answer marked.

    Raises:
        BadCell: a chat of several messages has no template, or the template refuses it.
    """
    if not messages:
        raise BadCell(
            "the prompt has no messages: it comes from a checkpoint of an older release; start "
            "again with resume=never"
        )
    if tokenizer.chat_template is None:
        if tools or len(messages) > 1 or messages[0]["role"] != "user":
            raise BadCell(
                "the prompt is a chat of several messages or has tools, and the reward model's "
                "tokenizer has no chat template to render it with"
            )
        return mark_plain(messages[0]["content"], answer, tokenizer)
    said = answer if answer.strip() else _SOMETHING
    conversation = [*messages, {"role": "assistant", "content": said}]
    text = mark_answers(conversation, tokenizer, only_last=True, tools=tools, checks_text=False)
    if said == answer:
        return text
    start, stop = text.answers[-1]
    place = text.text.rindex(_SOMETHING, start, stop)
    end = text.text[place + len(_SOMETHING) : stop]
    whole = text.text[:place] + answer + end
    return MarkedText(text=whole, answers=((start, len(whole)),), adds_specials=text.adds_specials)


def _without_end(text: MarkedText, tokenizer: PreTrainedTokenizerBase) -> MarkedText:
    """Cut the conversation at the end of the answer, before the token that ends its turn."""
    start, stop = text.answers[-1]
    own = text.text[start:stop]
    end = next((token for token in special_texts(tokenizer) if own.endswith(token)), "")
    whole = text.text[: stop - len(end)]
    answers = ((start, len(whole)),) if start < len(whole) else ()
    return MarkedText(text=whole, answers=answers, adds_specials=text.adds_specials)


def _up_to_the_end(row: LabelledTokens) -> LabelledTokens:
    end = num_scored_tokens(row)
    return LabelledTokens(token_ids=row.token_ids[:end], loss_mask=row.loss_mask[:end])


def _prompt_alone(text: MarkedText, tokenizer: PreTrainedTokenizerBase) -> LabelledTokens | BadCell:
    """Tokens of the prompt with an answer that was cut off before its first character."""
    if text.adds_specials:
        (ids,) = PlainEncoder(tokenizer).encode([text.text])
    else:
        (ids,) = encode([text.text], tokenizer, add_special_tokens=False)
    if isinstance(ids, BadCell):
        return ids
    token_ids = torch.tensor(ids, dtype=torch.int64)
    return LabelledTokens(token_ids=token_ids, loss_mask=torch.zeros_like(token_ids) > 0)
