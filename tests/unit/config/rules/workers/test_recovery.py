"""Rules of recovery."""

from __future__ import annotations

from tests.unit.config.rules.cases import COLOCATED_GPU, GPU, check_broken_values, check_rule, each

TWO = ["generation.num_engines=2"]
CASES = [
    (
        "engines that share devices",
        COLOCATED_GPU,
        ["recovery.max_restarts=1"],
        ["recovery.max_restarts=1", "placement=colocated", "placement=disaggregated"],
        ["recovery.max_restarts=0"],
    ),
    (
        "engines that judge",
        ["reward.judge.model=policy"],
        ["recovery.max_restarts=1"],
        ["recovery.max_restarts=1", "reward.judge.model=policy", "a model of its own"],
        ["recovery.max_restarts=0"],
    ),
    (
        "engines on several nodes",
        [*GPU, "generation.pipeline_parallel_size=2"],
        ["recovery.max_restarts=1"],
        ["recovery.max_restarts=1", "generation.pipeline_parallel_size=2", "max_restarts=0"],
        ["recovery.max_restarts=0"],
    ),
    (
        "more engines wanted than there are",
        [*TWO, "recovery.max_restarts=1"],
        ["recovery.min_engines=2"],
        ["recovery.min_engines=2", "generation.num_engines=2", "lower min_engines"],
        ["recovery.min_engines=1"],
    ),
    (
        "engines wanted and none replaced",
        TWO,
        ["recovery.min_engines=1"],
        ["recovery.min_engines=1", "recovery.max_restarts=0", "raise max_restarts"],
        ["recovery.max_restarts=1"],
    ),
    (
        "snapshots and nothing that needs them",
        [],
        ["recovery.snapshot_every=5"],
        ["recovery.snapshot_every=5", "recovery.max_restarts=0", "raise max_restarts"],
        ["recovery.max_restarts=1"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_leave_no_rule_behind(case):
    check_broken_values(case)
