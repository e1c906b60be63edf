"""The vLLM engines and their sampling."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rlhf_ray.config.setting import setting

# The tokens that top-k leaves travel with every sampled token: 4 bytes each.
LARGEST_TOP_K = 1024


@dataclass
class EngineConfig:
    """Settings of vLLM engines that the run's engines and a judge's engines share."""

    num_engines: int = setting(1, "vLLM engines, one Ray actor each.", minimum=1)
    tensor_parallel_size: int = setting(1, "Ranks of one engine.", minimum=1)
    dtype: str = setting(
        "bfloat16", "Number format of the engine's weights.", choices=("float32", "bfloat16")
    )
    max_num_seqs: int = setting(256, "Sequences that one engine runs at once.", minimum=1)
    gpu_memory_utilization: float = setting(
        0.6, "Share of a GPU's memory that an engine may use.", above=0, maximum=1
    )
    kv_cache_gib: float | None = setting(
        None, "Key-value cache of one engine; required without a GPU.", unit="GiB", above=0
    )
    num_cpus: float = setting(0.5, "Ray CPUs per engine.", unit="CPUs", minimum=0)
    num_gpus: float = setting(
        0.0, "Ray GPUs per engine rank; 0 runs on the CPU.", unit="GPUs", minimum=0, maximum=1
    )
    cpu_threads: int = setting(2, "Threads of a CPU engine rank.", minimum=1)

    def engine_values(self) -> dict[str, Any]:
        """The values of these settings by name, without those that a subclass adds."""
        return {field.name: vars(self)[field.name] for field in fields(EngineConfig)}


@dataclass
class GenerationConfig(EngineConfig):
    """Engines, sampling parameters and their resources."""

    max_response_tokens: int = setting(512, "Longest response.", unit="tokens", minimum=1)
    min_response_tokens: int = setting(
        0, "Least length: end of text is not sampled before.", unit="tokens", minimum=0
    )
    # Outside of these bounds vLLM changes the temperature or refuses it.
    temperature: float = setting(1.0, "Sampling temperature.", minimum=0.01, maximum=2.0)
    top_p: float = setting(
        1.0,
        "Nucleus sampling: probability mass to keep; 1 is off. Needs top_k.",
        above=0,
        maximum=1,
    )
    top_k: int = setting(
        0,
        "Sample from the k most likely tokens; 0 is off.",
        minimum=0,
        maximum=LARGEST_TOP_K,
    )
    min_p: float = setting(
        0.0,
        "Drop tokens below this share of the top probability; 0 is off. Needs top_k.",
        minimum=0,
        maximum=1,
    )
    stop: list[str] = setting([], "Strings that end a response.")
    ignore_eos: bool = setting(False, "Sample past the end of text, to max_response_tokens.")
    max_num_batched_tokens: int = setting(
        8192, "Most tokens in one engine step.", unit="tokens", minimum=16
    )
    enforce_eager: bool = setting(True, "No graph capture or compilation: a fast start.")
    pipeline_parallel_size: int = setting(
        1,
        "Pipeline stages of one engine, which may lie on several nodes (vLLM's Ray executor); a "
        "GPU for each of its tensor_parallel_size ranks. Not yet run on GPUs.",
        minimum=1,
    )
    data_parallel_size: int = setting(
        1,
        "Copies of the model in one engine, on one node, for experts that are spread over them "
        "(extra_engine_args.enable_expert_parallel). Not yet run on GPUs.",
        minimum=1,
    )
    enable_prefix_caching: bool = setting(
        True, "Share the prompt's key-value cache between the samples of a group."
    )
    extra_engine_args: dict[str, Any] = setting(
        {}, "Further vLLM engine arguments by name, passed on unchanged."
    )

    @property
    def num_workers(self) -> int:
        """Processes of one engine, each with its own GPU or share of the CPUs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def spans_nodes(self) -> bool:
        """Whether workers of an engine have bundles of their own, wherever those are."""
        return self.pipeline_parallel_size > 1
