"""Start of a vLLM engine, and its sleep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.generation.errors import answer
from rlhf_ray.publish.base import EnginePart

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


class EngineSleep:
    """Frees the GPU memory of an engine, and takes it back part by part.

    Args:
        sleeps: whether there is memory to free: False on a CPU and on GPUs of its own, where the
            methods do nothing.
    """

    def __init__(self, llm: AsyncLLM, *, engine_index: int, sleeps: bool) -> None:
        self._llm = llm
        self._index = engine_index
        self._sleeps = sleeps

    async def begin(self) -> None:
        """Free the memory once no request runs.

        The weights are forgotten (level 2) and not copied to the host (level 1): the next update
        overwrites them, and the host would hold 145 GB per node for a 72B model.
        """
        if self._sleeps:
            await answer(self._llm, self._index, self._llm.sleep(level=2, mode="wait"))

    async def end(self, part: EnginePart) -> None:
        """Take the memory of a part back, the weights before the cache.

        Requests run when both are back and an update has brought the weights.
        """
        if self._sleeps:
            await answer(self._llm, self._index, self._llm.wake_up(tags=[part.value]))
