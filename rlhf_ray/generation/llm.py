"""Start of a vLLM engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.config.errors import RunFailed

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM


def start_llm(config: VllmConfig, *, engine_index: int) -> AsyncLLM:
    """Start the engine of a configuration and load its model.

    Raises:
        RunFailed: vLLM did not start.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    except RuntimeError as error:
        raise RunFailed(
            f"generator {engine_index}: vLLM did not start: {error}. The cause is in the "
            "generator's log"
        ) from error
