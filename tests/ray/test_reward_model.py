"""A reward model between real actors: functions first, then the model; whole and sharded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from transformers import AutoModelForSequenceClassification

from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.roles.base import Starting, start_ranks
from rlhf_ray.cluster.roles.critic import CriticActor, CriticSettings
from rlhf_ray.cluster.roles.reward_model import RewardModelActor, RewardModelSettings
from rlhf_ray.cluster.roles.rewards import (
    ReplicatedScorer,
    RewardActor,
    RewardGroup,
    ShardedScorer,
)
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.supervisor import Supervisor
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig, RewardConfig
from rlhf_ray.config.groups.training import CriticConfig
from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.records import GroupSummary, RolloutGroup
from rlhf_ray.testing.fakes import make_group, make_prompt
from rlhf_ray.testing.tiny import tiny_reward_model

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
SIZES = TinySizes(
    hidden=32, intermediate=64, num_layers=2, num_heads=4, num_key_value_heads=2, head_size=8
)
ROLE: dict[str, Any] = {"dtype": "float32", "cpu_threads": 1, "max_tokens_per_micro_batch": 64}
MEAN, DEVIATION, WEIGHT = 0.5, 2.0, 3.0
RANKS = {"reward": 1, "reward_model": 1, "sharded": 2, "critic": 1}


class Roles:
    """A reward worker, a reward model that is whole, one on two ranks, and a critic of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisor = Supervisor()
        self._plans: list[RolePlan] = []
        self._group = placement_group([{"CPU": 0.1}] * sum(RANKS.values()))
        ray.get(self._group.ready(), timeout=60)
        self._launcher = Launcher(self._group, self.supervisor, timeout_s=180, stop_s=5)
        source = ModelConfig(path=str(folder))
        common = {"model": source, "seed": 0, "timeout_s": 60.0}
        whole = ModelRewardConfig(
            path=str(folder), weight=WEIGHT, mean=MEAN, standard_deviation=DEVIATION, **ROLE
        )
        sharded = replace(whole, zero_stage=3, num_ranks=2)
        functions = RewardConfig(functions=[{"path": "length", "arguments": {"target": 1}}])
        functions.model = whole
        self._create("reward", RewardActor, functions)
        self._create(
            "reward_model", RewardModelActor, RewardModelSettings(**common, reward_model=whole)
        )
        self._create(
            "sharded", RewardModelActor, RewardModelSettings(**common, reward_model=sharded)
        )
        self._create("critic", CriticActor, CriticSettings(**common, **_critic_settings()))
        members = self._launcher.members()
        by_role = {role: [m for m in members if m.name.role == role] for role in RANKS}
        ray.get(by_role["reward"][0].handle.start.remote(), timeout=60)
        plan = ResourcePlan(
            roles=tuple(self._plans), bundles=({"CPU": 0.1},) * sum(RANKS.values()), strategy="PACK"
        )
        starting = Starting(by_role=by_role, waiter=self.supervisor, timeout_s=60, plan=plan)
        calls = [
            call
            for role in ("reward_model", "sharded", "critic")
            for call in start_ranks(by_role[role], starting)
        ]
        self.supervisor.results(calls, phase="start", timeout_s=180)
        self.whole = RewardGroup(by_role["reward"], [ReplicatedScorer(by_role["reward_model"])])
        self.sharded = RewardGroup(by_role["reward"], [ShardedScorer(by_role["sharded"])])
        self.critic = by_role["critic"][0].handle

    def _create(self, role: str, actor: type, settings: Any) -> None:
        first = list(RANKS).index(role)
        start = sum(list(RANKS.values())[:first])
        plan = RolePlan(
            role=role,
            num_actors=RANKS[role],
            num_cpus=0.1,
            num_gpus=0,
            bundle_indices=tuple(range(start, start + RANKS[role])),
        )
        self._plans.append(plan)
        for rank in range(RANKS[role]):
            self._launcher.create(plan, rank, actor, settings)

    def score(
        self, rewards: RewardGroup, parts: Sequence[RolloutGroup]
    ) -> tuple[GroupSummary, RolloutGroup]:
        call = rewards.score(0, [ray.put(part) for part in parts])
        (summary,) = self.supervisor.results([call], phase="score", timeout_s=60)
        return summary, ray.get(call.payload)

    @torch.no_grad()
    def by_transformers(self, group: RolloutGroup) -> list[float]:
        model = AutoModelForSequenceClassification.from_pretrained(self.folder).eval()
        rows = group.token_ids.split(group.lengths.tolist())
        return [float(model(row[None]).logits[0, 0]) for row in rows]

    def close(self) -> None:
        self._launcher.close(orderly=False)
        remove_placement_group(self._group)


def _critic_settings() -> dict[str, Any]:
    return {
        "critic": CriticConfig(**ROLE),
        "algorithm": AlgorithmConfig(advantage="gae", bootstrap_truncated=True),
        "total_optimizer_steps": 1,
    }


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    folder = tmp_path_factory.mktemp("reward") / "model"
    roles = Roles(tiny_reward_model(folder, seed=4, vocab_size=260, sizes=SIZES))
    yield roles
    roles.close()


def parts_of(number: int) -> list[RolloutGroup]:
    """A group of five, sampled by two engines; none ends with what pads, which is 0."""
    prompt = make_prompt(number)
    parts = [make_group(prompt, indices, version=0) for indices in ((0, 3), (1, 2, 4))]
    ends = [part.token_ids == 0 for part in parts]
    return [
        replace(part, token_ids=torch.where(end, 5 + number, part.token_ids))
        for part, end in zip(parts, ends, strict=True)
    ]


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_the_reward_is_functions_and_the_models_score(roles: Roles, kind: str):
    rewards = {"whole": roles.whole, "sharded": roles.sharded}[kind]
    for number in range(2):
        summary, group = roles.score(rewards, parts_of(number))
        assert group.sample_indices == (0, 1, 2, 3, 4)
        raw = roles.by_transformers(group)
        assert len({round(score, 3) for score in raw}) == 5
        expected = [(score - MEAN) / DEVIATION for score in raw]
        assert list(summary.reward_parts["model"]) == pytest.approx(expected, abs=1e-5)
        lengths = summary.reward_parts["length"]
        whole = [a + WEIGHT * b for a, b in zip(lengths, expected, strict=True)]
        assert list(summary.rewards) == pytest.approx(whole, abs=1e-4)
        assert group.rewards.tolist() == list(summary.rewards)


def test_a_critic_that_starts_from_it_has_its_values(roles: Roles):
    """Of the state after the last token, at which the score is read."""
    _, group = roles.score(roles.whole, parts_of(0))
    cut = replace(group, finish_reasons=("length",) * group.num_samples)
    _, values = roles.critic.score.options(num_returns=2).remote(cut)
    (found,) = ray.get(values, timeout=60)
    assert found.final_values.tolist() == pytest.approx(roles.by_transformers(cut), abs=1e-5)
