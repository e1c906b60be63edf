"""Environment of an engine, and its shared memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.generation.environment import engine_environment
from rlhf_ray.generation.weights.segments import SharedSegment, open_segment


def environment(**settings):
    cpu_ids = settings.pop("cpu_ids", [0, 1, 2, 3])
    engine_index = settings.pop("engine_index", 0)
    generation = GenerationConfig(**settings)
    return engine_environment(generation, engine_index=engine_index, cpu_ids=cpu_ids)


def test_one_rank_runs_in_the_engine_process():
    variables = environment(cpu_threads=3)
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in variables


@pytest.mark.parametrize(
    ("engine_index", "cpu_ids", "places"),
    [
        (0, [0, 1, 2, 3], "0|1"),
        (1, [0, 1, 2, 3], "2|3"),
        (2, [0, 1, 2, 3], "0|1"),
        (0, [4, 6], "4|6"),
        (0, [5], "5|5"),
    ],
)
def test_ranks_have_separate_cpus_as_long_as_there_are_enough(engine_index, cpu_ids, places):
    variables = environment(
        tensor_parallel_size=2, cpu_threads=1, engine_index=engine_index, cpu_ids=cpu_ids
    )
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == places
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"


def test_a_rank_names_each_cpu_once():
    variables = environment(tensor_parallel_size=2, cpu_threads=2, cpu_ids=[0, 1, 2])
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,0"


def test_a_gpu_engine_keeps_its_threads():
    assert "OMP_NUM_THREADS" not in environment(num_gpus=1)


def test_compilation_is_off_only_in_eager_mode():
    assert environment(enforce_eager=True)["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in environment(enforce_eager=False)


READER = """
import sys
from rlhf_ray.generation.weights.segments import open_segment
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
