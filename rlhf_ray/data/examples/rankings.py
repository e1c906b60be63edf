"""Rankings: answers to one prompt, from best to worst."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.example_columns import LAYOUTS
from rlhf_ray.data.examples.chats import (
    Answer,
    answer_cell,
    answer_value,
    has_cell,
    mark_answer,
    prompt_cell,
    question_of_prompt,
)
from rlhf_ray.data.examples.load import Draft, load_examples
from rlhf_ray.data.examples.sets import ExampleSet
from rlhf_ray.data.rows import BadCell, Row, shown
from rlhf_ray.records.preferences import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_rankings(
    examples: ExamplesConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> ExampleSet[Ranking]:
    """Answers to one prompt, best first, with the loss mask on the answers.

    A row has a prompt and two answers, or a prompt and a list of answers from best to worst.

    Args:
        seed: not used, because nothing is random; all loaders have the same arguments.

    Raises:
        DataError: see `load_examples`.
    """
    del seed

    def draft(row: Row) -> Draft[Ranking]:
        prompt = prompt_cell(row, examples.prompt_column)
        answers = _answers(row, examples)
        margin = _margin(row, examples.margin_column)
        return Draft(
            question=question_of_prompt(prompt),
            texts=tuple(mark_answer(row, prompt, a, examples, tokenizer) for a in answers),
            build=lambda samples: Ranking(answers=samples, margin=margin),
        )

    return load_examples(
        "rankings",
        examples,
        tokenizer,
        layouts=LAYOUTS["rankings"],
        draft=draft,
    )


def _answers(row: Row, examples: ExamplesConfig) -> list[Answer]:
    """Read the answers from best to worst.

    Raises:
        BadCell: fewer than two answers, an answer that is not text, or two equal answers.
    """
    if not has_cell(row, examples.ranking_column):
        answers = [
            answer_cell(row, column)
            for column in (examples.chosen_column, examples.rejected_column)
        ]
        if answers[0] == answers[1]:
            raise BadCell(
                f"columns {examples.chosen_column!r} and {examples.rejected_column!r} have the "
                f"same answer, so that none is better: {shown(answers[0])}"
            )
        return answers
    column = examples.ranking_column
    value = row.cells[column]
    if not isinstance(value, list) or len(value) < 2:
        raise BadCell(
            f"column {column!r} must be a list of two answers or more, best first; it is "
            f"{shown(value)}"
        )
    answers = [answer_value(answer, column) for answer in value]
    if any(answers.count(answer) > 1 for answer in answers):
        same = next(answer for answer in answers if answers.count(answer) > 1)
        raise BadCell(f"column {column!r} has the same answer twice: {shown(same)}")
    return answers


def _margin(row: Row, column: str) -> float | None:
    value = row.cells.get(column)
    if value is None or value == "":
        return None
    try:
        # CSV has numbers as text.
        margin = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin) or margin < 0:
        raise BadCell(f"column {column!r} must be a number of at least 0; it is {shown(value)}")
    return margin
