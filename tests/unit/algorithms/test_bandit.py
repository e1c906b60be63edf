"""Every published method finds the optimum of a bandit, through the real driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rlhf_ray.config.keys.choices import conf_dir
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.testing.bandit import expected_reward, solve
from rlhf_ray.testing.bandit_workers import NUM_POSITIONS, RIGHT, VOCABULARY

METHODS = sorted(path.stem for path in (conf_dir() / "algorithm").glob("*.yaml"))
# A training takes a second: `make quick` runs one method without a critic and one with it.
UNIT_SLOW = pytest.mark.unit_slow
QUICK = ("grpo", "ppo")
OPTIMUM = 1.0
TASK = ("model=arithmetic", "data=arithmetic", "reward=exact_match", "generation=cpu")
SIZES = ("prompts_per_step=3", "samples_per_prompt=8", "num_steps=60", "algorithm.num_epochs=2")
STRONG_PENALTY = ("algorithm=grpo", "algorithm.kl_coefficient=1", "num_steps=100")
# Settings that no published method has on, each on top of one.
VARIANTS = {
    "stale rollouts, engine's old": ["algorithm=grpo", "max_staleness=1"],
    "stale rollouts, decoupled": ["algorithm=decoupled_ppo", "max_staleness=1"],
    "one step, current is old": ["algorithm=grpo", "algorithm.num_epochs=1"],
    "mini-batches": ["algorithm=ppo", "algorithm.num_mini_batches=3"],
    "rejection": [
        "algorithm=grpo",
        "algorithm.correction_weight=sequence",
        "algorithm.correction_filter=geometric",
        "algorithm.correction_reject=true",
    ],
    "filter by product": ["algorithm=grpo", "algorithm.correction_filter=sequence"],
    "dual clip": ["algorithm=grpo", "algorithm.dual_clip=3"],
    "steps without the deviation": ["algorithm=process", "algorithm.normalize_by_std=false"],
    # The critic has to learn first what is left to come at each place.
    "steps with a critic": ["algorithm=ppo", "algorithm.reward_level=step", "num_steps=100"],
    "leave-one-out deviation": ["algorithm=grpo", "algorithm.group_std_estimator=leave_one_out"],
    "entropy held": [
        "algorithm=grpo",
        "algorithm.entropy_target=0.05",
        "algorithm.entropy_step=0.001",
    ],
    "good tokens": ["algorithm=grpo", "algorithm.nll_coefficient=0.1"],
    "whitened per task": [
        "algorithm=grpo",
        "algorithm.whiten_advantages=true",
        "algorithm.whiten_per_task=true",
    ],
    "rewards per task, with a critic": ["algorithm=ppo", "algorithm.reward_normalization=running"],
    "rewards per task, of the batch": [
        "algorithm=rloo",
        "algorithm.reward_normalization=batch",
    ],
    "penalty in the loss, unbiased": [
        "algorithm=grpo",
        "algorithm.kl_coefficient=0.01",
        "algorithm.kl_estimator=k1",
        "algorithm.kl_gradient=unbiased",
    ],
    "penalty that is given up": [
        "algorithm=reinforce_pp",
        "algorithm.kl_coefficient=0.5",
        "algorithm.kl_controller=scheduled",
        "algorithm.kl_schedule_steps=20",
    ],
    # A penalty of this weight to where the policy started would keep it there.
    "reference that becomes the policy": [*STRONG_PENALTY, "algorithm.reference_every=1"],
    "reference that follows slowly": [
        *STRONG_PENALTY,
        "algorithm.reference_every=1",
        "algorithm.reference_decay=0.5",
    ],
    "penalty discounted": ["algorithm=reinforce_pp", "algorithm.kl_position_discount=0.5"],
    "huber": ["algorithm=ppo", "algorithm.value_huber_delta=0.5"],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tables of fifteen numbers: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def method(*overrides: str) -> Config:
    return load_config([*TASK, *SIZES, *overrides])


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=UNIT_SLOW) for n in METHODS]
)
def test_every_method_finds_the_optimum(name, seed):
    assert solve(method(f"algorithm={name}"), seed=seed) >= 0.98 * OPTIMUM


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_finds_it_too(name):
    assert solve(method(*VARIANTS[name]), seed=0) >= 0.98 * OPTIMUM


def test_expected_reward_by_hand():
    weights = torch.zeros(len(RIGHT) * NUM_POSITIONS, VOCABULARY)
    # Of five equally likely tokens: right first, half of 1/5; goes on with 4/5, then 1/5.
    assert expected_reward(weights) == pytest.approx(0.5 * 0.2 + 0.5 * 0.8 * 0.2)
    for prompt, (first, second) in enumerate(RIGHT):
        weights[prompt * NUM_POSITIONS, first] = 1e3
        weights[prompt * NUM_POSITIONS + 1, second] = 1e3
    assert expected_reward(weights) == pytest.approx(OPTIMUM)


@pytest.mark.slow
def test_a_strong_penalty_keeps_the_policy_from_it():
    assert solve(method(*STRONG_PENALTY), seed=0) < 0.9
    held = method("algorithm=grpo", "algorithm.kl_coefficient=5", "algorithm.kl_estimator=k2")
    assert solve(held, seed=0) < 0.6
