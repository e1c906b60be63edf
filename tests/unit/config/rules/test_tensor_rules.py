"""Rules of tensor slicing."""

from __future__ import annotations

from tests.unit.config.rules.cases import check_broken_values, check_rule, each

CASES = [
    (
        "slices that do not divide the ranks",
        ["training.num_ranks=6"],
        ["training.tensor_parallel_size=4"],
        ["training.tensor_parallel_size=4", "training.num_ranks=6", "use 8 ranks"],
        ["training.tensor_parallel_size=3"],
    ),
    (
        "slices of pieces of samples",
        ["training.num_ranks=4", "training.sequence_parallel_size=2"],
        ["training.tensor_parallel_size=2"],
        ["training.tensor_parallel_size=2", "training.sequence_parallel_size=2", "one of them"],
        ["training.tensor_parallel_size=2", "training.sequence_parallel_size=1"],
    ),
    (
        "slices and second copies on a node",
        ["reference.num_ranks=4", "reference.zero_stage=3", "reference.zero.hpz_partition_size=2"],
        ["reference.tensor_parallel_size=2"],
        ["reference.tensor_parallel_size=2", "reference.zero.hpz_partition_size=2"],
        ["reference.tensor_parallel_size=2", "reference.zero.hpz_partition_size=1"],
    ),
    (
        "slices and an adapter",
        ["training.num_ranks=2", "training.lora.r=4"],
        ["training.tensor_parallel_size=2"],
        ["training.tensor_parallel_size=2", "training.lora", "sequence_parallel_size"],
        ["training.sequence_parallel_size=2"],
    ),
    (
        "slices beside several engines",
        ["placement=colocated", "training.num_ranks=4", "generation.num_engines=4"],
        ["training.tensor_parallel_size=2"],
        ["training.tensor_parallel_size=2", "generation.num_engines=4", "disaggregated"],
        ["training.tensor_parallel_size=2", "generation.num_engines=2"],
    ),
    (
        "slices of a reward model",
        ["reward.model.path=a/b", "reward.model.num_ranks=3"],
        ["reward.model.tensor_parallel_size=2"],
        ["reward.model.tensor_parallel_size=2", "use 4 ranks"],
        ["reward.model.tensor_parallel_size=3"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)
