"""Which stacks of hundreds of workers are shown."""

from __future__ import annotations

from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.runtime.failure_stacks import describe_stacks


def name(role: str, rank: int) -> MemberName:
    return MemberName(role=role, rank=rank)


def test_the_culprit_and_one_of_each_role():
    stacks = {name("generator", rank): f"Thread 0x{rank:x}\n in wait" for rank in range(512)}
    stacks |= {name("learner", rank): f"Thread 0x{rank:x}\n in all_reduce" for rank in range(64)}
    stacks[name("learner", 7)] = "Thread 0x1\n in read_file"
    assert describe_stacks(stacks, name("learner", 7)) == [
        "--- stacks of learner_7:\nThread 0x1\n in read_file",
        "--- stacks of generator_0 (the same in 511 more of its role):\nThread 0x0\n in wait",
        "--- stacks of learner_0 (the same in 62 more of its role):\nThread 0x0\n in all_reduce",
    ]


def test_a_role_with_many_kinds_of_stacks_is_cut_short():
    stacks = {name("generator", rank): f"in step {rank}" for rank in range(10)}
    parts = describe_stacks(stacks, name("generator", 4))
    assert [part.splitlines()[0] for part in parts] == [
        "--- stacks of generator_4:",
        "--- stacks of generator_0:",
        "--- stacks of generator_1:",
        "--- stacks of generator_2:",
        "--- other stacks, not shown: 6 workers from generator_3 on",
    ]
