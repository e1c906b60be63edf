"""Demonstrations: conversations whose answers a model learns to give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.chat_fields import Message, says_something
from rlhf_ray.data.example_columns import LAYOUTS
from rlhf_ray.data.examples.chats import (
    answer_cell,
    conversation_cell,
    has_cell,
    mark_answer,
    mark_chat,
    prompt_cell,
    question_of_chat,
    question_of_prompt,
)
from rlhf_ray.data.examples.load import Draft, load_examples
from rlhf_ray.data.examples.sets import ExampleSet
from rlhf_ray.data.rows import Row
from rlhf_ray.records.supervised import LabelledTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_demonstrations(
    examples: ExamplesConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> ExampleSet[LabelledTokens]:
    """Conversations with the loss on every answer of the assistant, the end of its turn included.

    A row has a whole conversation, or a prompt and an answer. With the latter the loss is only on
    the answer, not on earlier answers inside the prompt. A message with the weight 0 is context.

    Args:
        seed: not used, because nothing is random; all loaders have the same arguments.

    Raises:
        DataError: see `load_examples`.
    """
    del seed

    def draft(row: Row) -> Draft[LabelledTokens]:
        if has_cell(row, examples.messages_column):
            messages = conversation_cell(row, examples.messages_column)
            marked = mark_chat(row, messages, examples, tokenizer, only_last=False)
            return Draft(
                question=question_of_chat(messages),
                texts=(marked,),
                build=_with_answer,
                notes=(
                    *_silences(messages, row.cells[examples.messages_column]),
                    *_passed_over(row, examples),
                ),
            )
        prompt = prompt_cell(row, examples.prompt_column)
        answer = answer_cell(row, examples.answer_column)
        marked = mark_answer(row, prompt, answer, examples, tokenizer)
        return Draft(question=question_of_prompt(prompt), texts=(marked,), build=_with_answer)

    return load_examples(
        "demonstrations",
        examples,
        tokenizer,
        layouts=LAYOUTS["demonstrations"],
        draft=draft,
    )


def _silences(messages: Sequence[Message], given: Sequence[Any]) -> Iterator[str]:
    """Notes about messages of a conversation from which nothing is learnt."""
    if len(given) > len(messages):
        yield "messages after the last answer that is learnt are left out"
    if any(m["role"] == "assistant" and not says_something(m) for m in messages):
        yield "an answer without text is context, and not learnt"


def _passed_over(row: Row, examples: ExamplesConfig) -> Iterator[str]:
    """Note a prompt or an answer next to a whole conversation."""
    columns = (examples.prompt_column, examples.answer_column)
    if names := [repr(column) for column in columns if has_cell(row, column)]:
        whole = repr(examples.messages_column)
        yield f"{' and '.join(names)} of a row with {whole} are not read"


def _with_answer(samples: tuple[LabelledTokens, ...]) -> LabelledTokens:
    (sample,) = samples
    if not bool(sample.loss_mask.any()):
        raise ValueError("no token of an answer is left")
    return sample
