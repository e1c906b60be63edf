"""Shared segments: seen by other processes, and gone when they are closed."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from rlhf_ray.publish.segments import SharedSegment, open_segment

READER = """
import sys
from rlhf_ray.publish.segments import open_segment
array = open_segment(sys.argv[1], int(sys.argv[2]))
print(int(array.sum()))
array[0] = 9
"""


def test_another_process_sees_a_segment_until_it_is_closed():
    segment = SharedSegment(1000)
    segment.array[:] = 2
    path = segment.path
    output = subprocess.run(
        [sys.executable, "-c", READER, path, "1000"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert output.stdout.split() == ["2000"]
    assert segment.array[0] == 9
    held = open_segment(path, 1000)
    segment.close()
    # What was opened stays readable; nothing new can be opened, and nothing is left behind.
    assert held[1] == 2
    assert not os.path.exists(path)
    with pytest.raises(OSError):
        open_segment(path, 1000)


def test_a_segment_can_be_written_through_numpy():
    segment = SharedSegment(16)
    np.copyto(segment.array[:8], np.arange(8, dtype=np.uint8))
    assert segment.array.tolist() == [0, 1, 2, 3, 4, 5, 6, 7] + [0] * 8
    segment.close()
