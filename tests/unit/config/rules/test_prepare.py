"""Rules of the data stage."""

from __future__ import annotations

from tests.unit.config.rules.cases import PREPARE, check_rule_of_a_stage, each

STAGE_CASES = [
    ("no sources", ["stage=prepare_data"], [], ["prepare.sources is empty"], PREPARE),
    (
        "source without a kind",
        PREPARE,
        ["prepare.sources.b.path=b.jsonl"],
        ["prepare.sources.b: neither kind nor layout", "preference", "openassistant"],
        ["prepare.sources.b.path=b.jsonl", "prepare.sources.b.layout=gsm8k"],
    ),
    (
        "unknown layout",
        PREPARE,
        ["prepare.sources.a.layout=hh_rlfh"],
        ["prepare.sources.a.layout=hh_rlfh", "did you mean hh_rlhf?"],
        ["prepare.sources.a.layout=hh_rlhf"],
    ),
    (
        "unknown key of a source",
        PREPARE,
        ["prepare.sources.a.wieght=2"],
        ["prepare.sources.a.wieght: unknown key", "did you mean weight?"],
        ["prepare.sources.a.weight=2"],
    ),
    (
        "unknown column",
        PREPARE,
        ["prepare.sources.a.columns={chosn:better}"],
        ["prepare.sources.a.columns.chosn", "did you mean chosen?"],
        ["prepare.sources.a.columns={chosen:better}"],
    ),
    (
        "evaluation set",
        PREPARE,
        ["prepare.evaluation_sets.exam.kind=prompt"],
        ["prepare.evaluation_sets.exam.path is not set"],
        ["prepare.evaluation_sets.exam={path:exam.jsonl,kind:prompt}"],
    ),
    (
        "a kind that a layout does not give",
        PREPARE,
        ["prepare.sources.a.layout=alpaca"],
        ["prepare.sources.a.kind=preference", "alpaca gives demonstration, prompt"],
        ["prepare.sources.a.layout=alpaca", "prepare.sources.a.kind=prompt"],
    ),
    (
        "some weights",
        [*PREPARE, "prepare.sources.b.path=b.txt"],
        ["prepare.sources.b.weight=1"],
        ["prepare.sources.a.weight is not set", "of every source, or of none"],
        ["prepare.sources.b.weight=1", "prepare.sources.a.weight=3"],
    ),
    (
        "a total without weights",
        PREPARE,
        ["prepare.total_samples=10"],
        ["prepare.total_samples=10", "prepare.sources.a.weight"],
        ["prepare.total_samples=10", "prepare.sources.a.weight=1"],
    ),
    (
        "shares of two stages",
        PREPARE,
        ["prepare.split=[1,1]"],
        ["prepare.split=[1.0, 1.0]", "sft, reward_model, rl", "[2,4,4]"],
        ["prepare.split=[1,1,0]"],
    ),
    (
        "a stage that a source is no use to",
        [*PREPARE, "prepare.sources.b={path:b.jsonl,kind:demonstration}"],
        ["prepare.split=[1,1,1]"],
        ["prepare.sources.b", "reward_model", "kind=demonstration cannot become"],
        ["prepare.split=[1,1,1]", "prepare.sources.b.split=[1,0,0]"],
    ),
    (
        "shares of a source alone",
        PREPARE,
        ["prepare.sources.a.split=[1,0,0]"],
        ["prepare.sources.a.split=[1.0, 0.0, 0.0]", "needs prepare.split"],
        ["prepare.sources.a.split=[1,0,0]", "prepare.split=[2,4,4]"],
    ),
    (
        "no length fits",
        PREPARE,
        ["prepare.min_characters=9", "prepare.max_characters=8"],
        ["prepare.min_characters=9", "prepare.max_characters=8"],
        ["prepare.min_characters=8", "prepare.max_characters=8"],
    ),
    (
        "tokens without a tokenizer",
        PREPARE,
        ["prepare.max_tokens=9"],
        ["prepare.max_tokens=9", "model.path"],
        ["prepare.max_tokens=9", "model.path=builtin:arithmetic"],
    ),
    (
        "a checkpoint of the data stage",
        PREPARE,
        ["resume=some/folder"],
        ["some/folder: stage=prepare_data has no checkpoints", "auto"],
        ["resume=never"],
    ),
]


@each(STAGE_CASES)
def test_rule_of_a_stage(case):
    check_rule_of_a_stage(case)
