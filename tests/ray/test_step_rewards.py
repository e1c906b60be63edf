"""Rewards of steps between real actors: from a function in its process to advantages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.roles.builder import BuilderActor, BuilderGroup, BuilderSettings
from rlhf_ray.cluster.roles.rewards import RewardActor
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.observe.rollout_log import rollout_path
from rlhf_ray.records import Coefficients, GroupSteps
from rlhf_ray.testing.fakes import make_group, make_prompt

USER_REWARD = '''
from rlhf_ray.rewards import StepRewards


def capitals(sample):
    """A step for each of the two characters, and nonsense where it is asked for."""
    ends = (2, 1) if sample.response == "??" else (1, 2)
    return StepRewards(rewards=tuple(float(c.isupper()) for c in sample.response), ends=ends)
'''
TIMEOUT_S = 60


@pytest.fixture
def actors(tmp_path: Path):
    """A reward worker and a builder, as a run has them."""
    (tmp_path / "reward.py").write_text(USER_REWARD)
    reward = RewardConfig(functions=[f"{tmp_path}/reward.py:capitals"])
    settings = BuilderSettings(
        algorithm=AlgorithmConfig(advantage="process", normalize_by_std=False),
        rollout_selection=RolloutSelectionConfig(),
        learner=TrainingConfig(max_tokens_per_micro_batch=100),
        critic=None,
        old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE,
        max_response_tokens=2,
        seed=0,
    )
    handles = [
        ray.remote(RewardActor).options(num_cpus=0.1).remote(reward),
        ray.remote(BuilderActor).options(num_cpus=0.1).remote(settings),
    ]
    ray.get([handle.start.remote() for handle in handles], timeout=TIMEOUT_S)
    yield handles
    ray.get([handle.close.remote() for handle in handles], timeout=TIMEOUT_S)
    for handle in handles:
        ray.kill(handle)


def unscored(*responses: str, indices: tuple[int, ...]):
    """Samples of two tokens behind the prompt's two, a character each."""
    group = make_group(make_prompt(0), indices, version=0)
    ends = torch.tensor([0, 0, 1, 2] * len(responses), dtype=torch.int32)
    steps = GroupSteps(text_ends=ends, rewards=ends.double() * 0, ends=ends < 0)
    return ray.put(replace(group, responses=responses, steps=steps))


def test_steps_travel_to_the_builder(actors, tmp_path):
    worker, builder = actors
    score = worker.score.options(num_returns=2)
    parts = unscored("Ab", indices=(1,)), unscored("bB", "??", indices=(0, 2))
    summary, group = score.remote(*parts)
    outcome = ray.get(summary, timeout=TIMEOUT_S)
    assert outcome.rewards == (1.0, 1.0)
    assert outcome.step_rewards == ((0.0, 1.0), (1.0, 0.0))
    (failure,) = outcome.failures
    assert failure.sample_index == 2
    assert "StepRewards.ends[1] is 1; ends rise strictly" in failure.message

    build = builder.build.options(num_returns=2)
    counts = {"groups": 1, "reference": 0, "values": 0, "old": 0}
    metrics, steps = build.remote(0, Coefficients(), counts, group)
    assert ray.get(metrics, timeout=TIMEOUT_S)["steps/per_sample"] == 2.0
    (experience,) = ray.get(steps, timeout=TIMEOUT_S)
    # Against the mean of 1/2: the first answer gets better, the second one worse.
    by_first_token = dict(
        zip(
            experience.token_ids.view(2, 4)[:, 2].tolist(),
            experience.advantages.view(2, 4).tolist(),
            strict=True,
        )
    )
    assert by_first_token == {10: [0.0, 0.0, 0.0, 0.5], 11: [0.0, 0.0, 0.0, -0.5]}

    path = rollout_path(tmp_path, 1)
    ray.get(builder.write_rollouts.remote(path, 1, group), timeout=TIMEOUT_S)
    ray.get(builder.finish_rollouts.remote(), timeout=TIMEOUT_S)
    assert '"steps": [[0.0, 1, 1], [1.0, 1, 1]]' in path.read_text()


def test_groups_go_to_a_file_of_a_checkpoint_and_come_back(actors, tmp_path):
    worker, handle = actors
    summary, group = worker.score.options(num_returns=2).remote(
        unscored("Ab", "bB", indices=(0, 1))
    )
    info = ProcessInfo(pid=0, created=0.0, node_id="", stdout_path="", stderr_path="", gpu_ids=())
    name = MemberName(role="builder", rank=0)
    builder = BuilderGroup(
        Member(name=name, handle=handle, info=info), num_learners=1, num_critics=0
    )
    files = [tmp_path / "groups" / name for name in ("now", "later")]
    ray.get(
        [
            builder.save_groups(file, [group] * 3, in_background=file.name == "later").signal
            for file in files
        ],
        timeout=TIMEOUT_S,
    )
    written = ray.get(builder.written_groups(wait_s=TIMEOUT_S).signal, timeout=TIMEOUT_S)
    sealed = ray.get(builder.seal_groups(tmp_path / "groups", sync=False).signal, timeout=TIMEOUT_S)
    assert sealed == {"now": written["later"], "later": written["later"]}
    call = builder.load_groups(files[0], 3)
    assert ray.get(call.signal, timeout=TIMEOUT_S) == (ray.get(summary, timeout=TIMEOUT_S),) * 3
    once, *_, original = ray.get([*call.payload, group], timeout=TIMEOUT_S)
    assert once.steps.rewards.tolist() == original.steps.rewards.tolist()
    assert once.rewards.tolist() == original.rewards.tolist() == [1.0, 1.0]
