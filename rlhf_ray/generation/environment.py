"""Environment variables that vLLM reads when it is imported and when it starts its processes."""

from __future__ import annotations

from rlhf_ray.config.groups.generation import GenerationConfig


def engine_environment(
    generation: GenerationConfig, *, engine_index: int, cpu_ids: list[int]
) -> dict[str, str]:
    """Variables for one engine; to be set before vLLM is imported.

    Args:
        engine_index: engines on one machine get different CPUs, as long as there are enough.
        cpu_ids: CPUs that this process may use.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if generation.enforce_eager:
        # vLLM compiles a few helpers of its sampler even in eager mode: this takes seconds of a C++
        # compiler at the first token, and fails without a compiler.
        variables["TORCHDYNAMO_DISABLE"] = "1"
    if generation.num_gpus == 0:
        variables |= _cpu_variables(generation, engine_index, cpu_ids)
    return variables


def _cpu_variables(
    generation: GenerationConfig, engine_index: int, cpu_ids: list[int]
) -> dict[str, str]:
    threads, num_ranks = generation.cpu_threads, generation.tensor_parallel_size
    variables = {"OMP_NUM_THREADS": str(threads)}
    if num_ranks == 1:
        # Run the single rank in this process: it saves a process and its 10 s of imports.
        # vLLM 0.32 allows that on a CPU only with this variable.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return variables
    variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    # Ranks must be told their CPUs: vLLM's own choice wants a NUMA node for each.
    first = engine_index * num_ranks * threads
    places = [
        [cpu_ids[(first + rank * threads + thread) % len(cpu_ids)] for thread in range(threads)]
        for rank in range(num_ranks)
    ]
    variables["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
        ",".join(str(cpu) for cpu in dict.fromkeys(place)) for place in places
    )
    return variables
