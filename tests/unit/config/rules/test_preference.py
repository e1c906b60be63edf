"""Rules of preference training."""

from __future__ import annotations

from tests.unit.config.rules.cases import check_broken_values, check_rule, each

PREFERENCE = ["stage=preference", "examples.path=rows.jsonl"]

CASES = [
    (
        "label smoothing of a loss without it",
        [*PREFERENCE, "preference.label_smoothing=0.1"],
        ["preference.loss=ipo"],
        ["preference.label_smoothing=0.1", "preference.loss=ipo", "sigmoid or robust"],
        ["preference.loss=robust"],
    ),
    (
        "length of answers without rankings",
        [*PREFERENCE, "preference.divide_by_length=true"],
        ["preference.loss=kto"],
        ["preference.divide_by_length=true", "preference.loss=kto", "set it to false"],
        ["preference.divide_by_length=false"],
    ),
    (
        "likelihood of best answers without rankings",
        [*PREFERENCE, "preference.sft_coefficient=0.5"],
        ["preference.loss=kto"],
        ["preference.sft_coefficient=0.5", "preference.loss=kto", "set it to 0"],
        ["preference.sft_coefficient=0"],
    ),
    (
        "weights of feedback on rankings",
        PREFERENCE,
        ["preference.undesirable_weight=2"],
        ["preference.undesirable_weight=2", "preference.loss=sigmoid", "preference.loss=kto"],
        ["preference.undesirable_weight=2", "preference.loss=kto"],
    ),
    (
        "budget of rankings",
        [*PREFERENCE, "examples.max_tokens=100"],
        ["training.max_tokens_per_micro_batch=199"],
        ["training.max_tokens_per_micro_batch=199", "100 tokens each", "at least 200"],
        ["training.max_tokens_per_micro_batch=200"],
    ),
    (
        "one sample of feedback a step",
        [*PREFERENCE, "preference.loss=kto"],
        ["fit.batch_size=1"],
        ["fit.batch_size=1", "preference.loss=kto", "at least 2"],
        ["fit.batch_size=2"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)
