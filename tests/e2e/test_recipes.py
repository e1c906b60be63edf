"""The recipes learn, and a recipe whose advantages are flipped unlearns."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from tests.e2e.run_command import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.timeout(900)]


def run_recipe(output: Path, *overrides: str) -> list[dict[str, float]]:
    """Metrics of a whole run, step by step."""
    command = [sys.executable, "-m", "rlhf_ray.main", f"output_dir={output}", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=800, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def mean(metrics: list[dict[str, float]], name: str) -> float:
    return fmean(row[name] for row in metrics)


def check_numerics(metrics: list[dict[str, float]]) -> None:
    assert max(row["publish/probe_gap_max"] for row in metrics) < 1e-3
    assert max(row["rollout/logprob_gap_mean"] for row in metrics) < 1e-4


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))]
)
def test_demo_learns(tmp_path, seed):
    metrics = run_recipe(tmp_path / "demo", "recipe=demo", f"seed={seed}")
    assert len(metrics) == 60
    assert 0.2 <= mean(metrics[:3], "reward/mean") <= 0.60
    assert mean(metrics[-10:], "reward/mean") >= 0.85
    check_numerics(metrics)
    if seed == 0:
        answers = asyncio.run(answers_of(tmp_path / "demo" / "model"))
        assert fmean(answers) >= 0.8, "the saved model, in vLLM, does not know what it learnt"


@pytest.mark.nightly
def test_demo_with_flipped_advantages_unlearns(tmp_path):
    # A reward with weight -1 gives every sample exactly the opposite advantage.
    flipped = "reward.functions=[{path: exact_match, weight: -1.0}]"
    metrics = run_recipe(tmp_path / "flipped", "recipe=demo", flipped)
    assert mean(metrics[:3], "reward/exact_match") >= 0.2
    assert mean(metrics[-10:], "reward/exact_match") < 0.30
    check_numerics(metrics)


@pytest.mark.nightly
def test_demo_ppo_learns(tmp_path):
    metrics = run_recipe(tmp_path / "demo_ppo", "recipe=demo_ppo")
    assert mean(metrics[:3], "reward/mean") <= 0.60
    assert mean(metrics[-10:], "reward/mean") >= 0.80
    check_numerics(metrics)


@pytest.mark.nightly
def test_the_hybrid_engine_learns_the_same(tmp_path):
    options = ("recipe=demo", "num_steps=4", "observe.rollouts=false")
    apart = run_recipe(tmp_path / "apart", *options)
    together = run_recipe(tmp_path / "together", *options, "placement=colocated")
    rewards = [[row["reward/mean"] for row in metrics] for metrics in (apart, together)]
    assert rewards[0] == rewards[1]


async def answers_of(model: Path) -> list[float]:
    """Whether a fresh engine on the saved model answers each of twenty sums, greedily enough."""
    from rlhf_ray.config.groups.data import DataConfig
    from rlhf_ray.config.groups.generation import GenerationConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.data.prompts.load import load_prompts
    from rlhf_ray.generation.engine import GenerationEngine
    from rlhf_ray.models.loading import load_tokenizer

    settings = ModelConfig(path=str(model))
    data = DataConfig(path="rlhf_ray.data.builtin:arithmetic", answer_column="answer", limit=20)
    prompts = load_prompts(data, load_tokenizer(settings), seed=0).prompts
    engine = GenerationEngine(
        generation=GenerationConfig(
            dtype="float32", max_response_tokens=6, temperature=0.2, kv_cache_gib=0.1
        ),
        model=settings,
        engine_index=0,
        max_sequence_tokens=64,
        greedy_from=1_000,
        request_timeout_s=60.0,
    )
    await engine.start()
    try:
        groups = await asyncio.gather(*(engine.generate(prompt, (0,)) for prompt in prompts))
    finally:
        await engine.close()
    return [float(group.responses[0].strip() == group.prompt.answer) for group, _ in groups]
