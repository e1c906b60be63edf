"""Environment of an engine."""

from __future__ import annotations

import pytest

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.generation.environment import engine_environment


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
