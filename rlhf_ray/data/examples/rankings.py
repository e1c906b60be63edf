"""Rankings: answers to one prompt, from best to worst."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
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

# The column in which stage=prepare_data writes the pairs whose order is known.
_PAIRS_COLUMN = "ranking_pairs"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
# Margins are differences of scores. Larger ones leave the range in which a loss has a gradient.
_MAX_MARGIN = 1e6


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
            notes=tuple(_passed_over(row, answers, examples)),
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


def _passed_over(row: Row, answers: list[Answer], examples: ExamplesConfig) -> Iterator[str]:
    """Note what a row with a ranking says otherwise elsewhere."""
    column = examples.ranking_column
    if not has_cell(row, column):
        return
    pairs = row.cells.get(_PAIRS_COLUMN)
    if isinstance(pairs, list) and len(pairs) < len(answers) * (len(answers) - 1) // 2:
        yield (
            f"answers of equal rank ({_PAIRS_COLUMN!r} has no pair of them) are learnt as if the "
            f"one that {column!r} names first were better"
        )
    ends = ((examples.chosen_column, answers[0]), (examples.rejected_column, answers[-1]))
    for other, answer in ends:
        if has_cell(row, other) and row.cells[other] != answer:
            yield f"{other!r} of a row with {column!r} is not read, and is another answer"


def _margin(row: Row, column: str) -> float | None:
    value = row.cells.get(column)
    if value is None or value == "":
        return None
    try:
        # CSV has numbers as text. Python also reads 1_000 and other digits than 0 to 9.
        is_number = not isinstance(value, str) or _NUMBER.fullmatch(value.strip())
        margin = float(value) if is_number and not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not 0 <= margin <= _MAX_MARGIN:
        raise BadCell(
            f"column {column!r} must be a number of at least 0 and at most {_MAX_MARGIN:,.0f}; it "
            f"is {shown(value)}"
        )
    return margin
