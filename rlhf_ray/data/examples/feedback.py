"""Feedback: single answers labelled good or bad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.example_columns import LAYOUTS
from rlhf_ray.data.examples.chats import answer_cell, mark_answer, prompt_cell, question_of_prompt
from rlhf_ray.data.examples.load import Draft, load_examples
from rlhf_ray.data.examples.sets import ExampleSet
from rlhf_ray.data.rows import BadCell, Row, cell, shown
from rlhf_ray.records.preferences import Feedback

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Files without types (CSV) have these words for booleans.
_WORDS = {"true": True, "false": False}


def load_feedback(
    examples: ExamplesConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> ExampleSet[Feedback]:
    """Answers with their loss mask, each labelled good or bad.

    Args:
        seed: not used, because nothing is random; all loaders have the same arguments.

    Raises:
        DataError: see `load_examples`.
    """
    del seed

    def draft(row: Row) -> Draft[Feedback]:
        prompt = prompt_cell(row, examples.prompt_column)
        answer = answer_cell(row, examples.answer_column)
        is_good = _verdict(row, examples.label_column)
        return Draft(
            question=question_of_prompt(prompt),
            texts=(mark_answer(row, prompt, answer, examples, tokenizer),),
            build=lambda samples: Feedback(sample=samples[0], is_good=is_good),
        )

    return load_examples(
        "feedback",
        examples,
        tokenizer,
        layouts=LAYOUTS["feedback"],
        draft=draft,
    )


def _verdict(row: Row, column: str) -> bool:
    value = cell(row, column)
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise BadCell(f"column {column!r} must be true or false; it is {shown(value)}")
    return value
