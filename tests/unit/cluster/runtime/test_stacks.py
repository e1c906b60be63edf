"""Which threads of a stack dump are shown."""

from __future__ import annotations

from rlhf_ray.cluster.runtime.diagnose import _own_stacks

RAY = '  File "/env/ray/_private/worker.py", line 1069 in main_loop'
POOL = """Thread 0x01 (most recent call first):
  File "/lib/python3.11/concurrent/futures/thread.py", line 81 in _worker
  File "/lib/python3.11/threading.py", line 982 in run"""


def test_a_thread_at_work_is_shown_without_frames_of_ray():
    stacks = f"""{POOL}

Current thread 0x02 (most recent call first):
  File "/code/rlhf_ray/training/engine.py", line 12 in backward
{RAY}
"""
    assert _own_stacks(stacks) == (
        "Current thread 0x02 (most recent call first):\n"
        '  File "/code/rlhf_ray/training/engine.py", line 12 in backward'
    )


def test_an_idle_process_says_so():
    assert _own_stacks(f"{POOL}\n\nCurrent thread 0x02 (most recent call first):\n{RAY}\n") == (
        "idle: waiting for work"
    )
