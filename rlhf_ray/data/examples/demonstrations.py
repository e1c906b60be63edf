"""Demonstrations: conversations whose answers a model learns to give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples.chats import (
    answer_cell,
    asked,
    asked_by,
    conversation_cell,
    has_cell,
    mark_answer,
    mark_chat,
    prompt_cell,
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

    A row has a whole conversation, or a prompt and an answer to it; of the latter, only the
    answer is learnt, whatever answers the prompt has of its own.

    Args:
        seed: not used: nothing here is drawn.

    Raises:
        DataError: see `load_examples`.
    """
    del seed

    def draft(row: Row) -> Draft[LabelledTokens]:
        if has_cell(row, examples.messages_column):
            messages = conversation_cell(row, examples.messages_column)
            marked = mark_chat(row, messages, examples, tokenizer, only_last=False)
            return Draft(asked=asked(messages), texts=(marked,), build=_with_answer)
        prompt = prompt_cell(row, examples.prompt_column)
        answer = answer_cell(row, examples.answer_column)
        marked = mark_answer(row, prompt, answer, examples, tokenizer)
        return Draft(asked=asked_by(prompt), texts=(marked,), build=_with_answer)

    return load_examples(
        "demonstrations",
        examples,
        tokenizer,
        layouts=(("messages_column",), ("prompt_column", "answer_column")),
        draft=draft,
    )


def _with_answer(samples: tuple[LabelledTokens, ...]) -> LabelledTokens:
    (sample,) = samples
    if not bool(sample.loss_mask.any()):
        raise ValueError("no token of an answer is left")
    return sample
