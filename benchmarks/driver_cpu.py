"""CPU time of the driver per group, with 8 to 512 engines that do nothing.

    python -m benchmarks.driver_cpu MODEL REPEATS RESULT

The pipeline is that of a run, and so are its calls: every engine is a member of its own, but four
asynchronous actors answer for all of them. The number of groups is the same for every number of
engines. CPU time is that of the whole process of the driver, with Ray's threads.
"""

from __future__ import annotations

import time
from typing import Any

import ray

from benchmarks.work import arguments, write_result
from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.engines.group import GeneratorGroup
from rlhf_ray.cluster.roles.rewards import RewardGroup
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.records import GroupSummary, Prompt, SampleFailure

NUM_ENGINES = (8, 64, 512)
# Four prompts for each of 512 engines.
NUM_GROUPS = 2048
_NUM_SAMPLES, _NUM_REWARD_WORKERS, _NUM_ACTORS = 8, 8, 4
_STATISTICS: dict[str, float] = dict.fromkeys(
    ("kv_cache_use_max", "queue_max", "preemptions", "prefix_queries", "prefix_hits"), 0.0
)
_INFO = ProcessInfo(pid=0, created=0.0, node_id="", stdout_path="", stderr_path="", gpu_ids=())


class Worker:
    """Answers as an engine and as a reward worker do; a group is its prompt."""

    async def statistics(self) -> dict[str, float]:
        return _STATISTICS

    async def generate(
        self, prompt: Prompt, _sample_indices: tuple[int, ...], _together: int
    ) -> tuple[tuple[SampleFailure, ...], Prompt]:
        return (), prompt

    async def score(self, prompt: Prompt) -> tuple[GroupSummary, Prompt]:
        samples = range(_NUM_SAMPLES)
        rewards = tuple(float(index) for index in samples)
        summary = GroupSummary(
            prompt_id=prompt.prompt_id,
            stream_index=prompt.stream_index,
            source=prompt.source,
            sample_lengths=tuple(64 for _ in samples),
            response_lengths=tuple(32 for _ in samples),
            finish_reasons=tuple("stop" for _ in samples),
            rewards=rewards,
            reward_parts={"made_up": rewards},
            oldest_version=-1,
            newest_version=-1,
            failures=(),
        )
        return summary, prompt


class Prompts:
    """An endless stream of prompts of 32 tokens."""

    def __init__(self) -> None:
        self._next = 0

    def next(self) -> Prompt:
        index, self._next = self._next, self._next + 1
        return Prompt(
            prompt_id=f"p{index}",
            seed=index,
            stream_index=index,
            token_ids=tuple(range(32)),
            text="a prompt",
            answer=None,
            source="made_up",
            columns={},
        )

    def record(self, outcome: GroupSummary) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def main() -> None:
    _, repeats, result = arguments()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    handles = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(_NUM_ACTORS)]
    pipelines = {number: pipeline(number, handles) for number in NUM_ENGINES}
    measured: dict[str, list[float]] = {f"driver_ms_{number}": [] for number in NUM_ENGINES}
    # The first round is a warm-up: connections to actors, first calls of methods.
    for step in range(repeats + 1):
        for number in NUM_ENGINES:
            before = time.process_time()
            batch = pipelines[number].next_batch(step)
            spent_s = time.process_time() - before
            assert len(batch.groups) == NUM_GROUPS
            if step:
                measured[f"driver_ms_{number}"].append(1000 * spent_s / NUM_GROUPS)
    ray.shutdown()
    write_result(result, measured)


def pipeline(num_engines: int, handles: list[Any]) -> RolloutPipeline:
    """The pipeline of a synchronous run with this many engines."""
    return RolloutPipeline(
        prompts=Prompts(),
        generators=GeneratorGroup(_members("generator", num_engines, handles)),
        rewards=RewardGroup(_members("reward", _NUM_REWARD_WORKERS, handles)),
        waiter=Supervisor(),
        failure_budget=FailureBudget(0.0),
        settings=PipelineSettings(
            num_steps=1_000_000,
            prompts_per_step=NUM_GROUPS,
            samples_per_prompt=_NUM_SAMPLES,
            max_staleness=0,
            generate_timeout_s=600.0,
        ),
    )


def _members(role: str, number: int, handles: list[Any]) -> list[Member]:
    return [
        Member(
            name=MemberName(role=role, rank=rank), handle=handles[rank % len(handles)], info=_INFO
        )
        for rank in range(number)
    ]


if __name__ == "__main__":
    main()
