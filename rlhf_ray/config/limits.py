"""Largest values of numbers whose key states none: far above any real run, and finite.

A number above them is a slip of the keyboard, and ends somewhere as an overflow, an endless wait or
all memory of the machine. A key states a smaller or larger maximum where it needs one.
"""

from __future__ import annotations

# By the last part of the key's name.
_BY_NAME: dict[str, float] = {
    # Each one is a process, or a bundle of the plan.
    "num_workers": 16_384,
    "num_engines": 16_384,
    "num_ranks": 16_384,
    "replicas": 16_384,
    "max_replicas": 16_384,
    "tensor_parallel_size": 1_024,
    "cpu_threads": 4_096,
    "num_cpus": 4_096,
    # They are multiplied with each other.
    "prompts_per_step": 10_000_000,
    "batch_size": 10_000_000,
    "samples_per_prompt": 100_000,
    "samples": 100_000,
    "num_samples": 100_000,
    "num_mini_batches": 100_000,
    "num_epochs": 100_000,
    "num_probe_sequences": 100_000,
    "num_resamples": 10_000_000,
    "learning_rate": 100,
    "weight_decay": 100,
    "split_seed": 2**63 - 1,
}
_BY_UNIT: dict[str, float] = {
    "seconds": 100_000_000,  # Three years.
    "rows": 10**12,
    "samples": 10**12,
    "bytes": 10**15,
}
_OTHERS = 10**9


def largest(name: str, unit: str) -> float:
    """The largest value of a number.

    Args:
        name: dotted name of the key.
        unit: of its setting.
    """
    last = name.rpartition(".")[2]
    return _BY_NAME.get(last, _BY_UNIT.get(unit, _OTHERS))
