"""Whole runs on one GPU, which engine, learner and reference share: bfloat16, CUDA, vLLM's own
attention kernels."""

from __future__ import annotations

import pytest

from tests.e2e.test_recipes import mean, run_recipe

ON_ONE_GPU = (
    "recipe=demo",
    "generation=gpu",
    "training=gpu",
    "generation.kv_cache_gib=1.0",
    "training.learning_rate=2e-4",
    "observe.rollouts=false",
)
APART = (
    "generation.num_gpus=0.4",
    "training.num_gpus=0.3",
    "reference.num_gpus=0.3",
)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_the_demo_learns_on_a_gpu(tmp_path, eager):
    metrics = run_recipe(
        tmp_path / "demo", *ON_ONE_GPU, *APART, f"generation.enforce_eager={eager}"
    )
    check(metrics)


def test_the_hybrid_engine_learns_on_a_gpu(tmp_path):
    """Engine and learner take turns on the whole GPU: sleep, wake, offload."""
    together = ("placement=colocated", "reference.num_gpus=0", "reference.dtype=float32")
    metrics = run_recipe(tmp_path / "hybrid", *ON_ONE_GPU, *together)
    check(metrics)


def check(metrics: list[dict[str, float]]) -> None:
    assert len(metrics) == 60
    assert 0.2 <= mean(metrics[:3], "reward/mean") <= 0.60
    assert mean(metrics[-10:], "reward/mean") >= 0.85
    # Engine and learner round their bfloat16 in other places.
    assert max(row["rollout/logprob_gap_mean"] for row in metrics) < 0.05
