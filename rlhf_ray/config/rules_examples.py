"""Rules of the examples: where held-out rows come from, and columns that differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rlhf_ray.config.rules.rule import RL_STAGES, Rule
from rlhf_ray.config.run import Config

# A contradiction between these keys is one in any stage: none of them depends on another group.
_STAGES = (*RL_STAGES, "pretrain", "sft", "reward_model", "preference")


def _one_way_of_holding_out(config: Config) -> Iterator[str]:
    examples = config.examples
    if examples.has_eval_source and examples.eval_share:
        key = "eval_split" if examples.eval_path is None else "eval_path"
        yield (
            f"examples.eval_share={examples.eval_share}: the held-out rows have a source of their "
            f"own (examples.{key}={vars(examples)[key]}), so that no share of examples.path is "
            f"held out; set examples.eval_share to null, or examples.{key}"
        )


def _held_out_rows_are_others(config: Config) -> Iterator[str]:
    examples = config.examples
    same_path = examples.eval_path in (None, examples.path)
    same_split = examples.eval_split in (None, examples.split)
    if examples.has_eval_source and same_path and same_split:
        key = "eval_split" if examples.eval_path is None else "eval_path"
        yield (
            f"examples.{key}={vars(examples)[key]}: names the rows that are trained on; name other "
            f"rows, or set it to null and hold out a share with examples.eval_share"
        )


def _columns_differ(config: Config) -> Iterator[str]:
    examples = config.examples
    for one, other in itertools.combinations(
        ("prompt_column", "answer_column", "chosen_column", "rejected_column"), 2
    ):
        column = vars(examples)[one]
        if column == vars(examples)[other]:
            yield (
                f"examples.{other}={column}: is also examples.{one}; name the column that has "
                f"each of them"
            )


EXAMPLES_RULES: tuple[Rule, ...] = (
    Rule(
        about="`examples.eval_share` is null or 0 where `examples.eval_path` or "
        "`examples.eval_split` is set.",
        keys=("examples.eval_share", "examples.eval_path", "examples.eval_split"),
        problems=_one_way_of_holding_out,
        stages=_STAGES,
    ),
    Rule(
        about="`examples.eval_path` and `examples.eval_split` name other rows than "
        "`examples.path` and `examples.split`.",
        keys=(
            "examples.eval_path",
            "examples.path",
            "examples.eval_split",
            "examples.split",
        ),
        problems=_held_out_rows_are_others,
        stages=_STAGES,
    ),
    Rule(
        about="Columns of prompt, answer, chosen and rejected answer differ.",
        keys=(
            "examples.prompt_column",
            "examples.answer_column",
            "examples.chosen_column",
            "examples.rejected_column",
        ),
        problems=_columns_differ,
        stages=_STAGES,
    ),
)
