"""The time that a rank waits for another one, during the start and after it; real ranks."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.stack

# Rank 1 is late for the first operation, as one that loads its model slowly, and for the second.
RANK = """
import sys, time
from datetime import timedelta
import torch
from torch.distributed import all_reduce, new_group
from rlhf_ray.training.engine.meeting import limit_collectives, meet
rank, port = int(sys.argv[1]), int(sys.argv[2])
meet("gloo", rank, 2, "127.0.0.1", port, timeout=timedelta(seconds=120))
of_an_engine = new_group([0, 1])
if rank:
    time.sleep(3)
all_reduce(torch.zeros(1))
limit_collectives(1.5)
for group in (None, of_an_engine):
    started = time.monotonic()
    try:
        all_reduce(torch.zeros(1), group=group) if rank == 0 else time.sleep(20)
    except RuntimeError:
        print("gave up after", round(time.monotonic() - started, 1), flush=True)
"""


def test_a_rank_gives_up_after_the_limit_and_waits_longer_during_the_start():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(port)], stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        output, _ = ranks[0].communicate(timeout=120)
    finally:
        for process in ranks:
            process.kill()
    waits = [float(line.split()[-1]) for line in output.splitlines() if "gave up" in line]
    assert len(waits) == 2, output
    # Of the default group, and of one that DeepSpeed would have made. Without the limit: 120 s.
    assert all(1.0 <= wait < 20 for wait in waits)
