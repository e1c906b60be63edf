"""Start of a vLLM engine, its sleep and its statistics."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.generation.environment import engine_environment
from rlhf_ray.generation.errors import answer
from rlhf_ray.publish.base import EnginePart

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM


def import_vllm(generation: GenerationConfig, *, engine_index: int) -> None:
    """Set vLLM's environment and import it, if that has not been done.

    It takes seconds, in which an engine needs nothing of other roles. An import that fails is
    reported by `requirements.check_vllm`.
    """
    os.environ |= engine_environment(
        generation, engine_index=engine_index, cpu_ids=sorted(os.sched_getaffinity(0))
    )
    with contextlib.suppress(ImportError):
        import vllm.v1.engine.async_llm  # noqa: F401


class EngineStatistics:
    """Numbers of the scheduler of an engine since they were last taken.

    All are sums or maxima over engine steps. vLLM 0.32 says that the fields which `record` reads
    are not stable.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, float] = dict.fromkeys(
            ("kv_cache_use_max", "queue_max", "preemptions", "prefix_queries", "prefix_hits"), 0.0
        )

    def record(self, scheduler: Any | None, iteration: Any | None) -> None:
        """Take in one step: vLLM's `SchedulerStats` and `IterationStats`; both may be missing."""
        values = self._values
        if scheduler is not None:
            waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            values["queue_max"] = max(values["queue_max"], float(waiting))
            values["kv_cache_use_max"] = max(values["kv_cache_use_max"], scheduler.kv_cache_usage)
            # Tokens that were looked up in the prefix cache, and those that were there.
            values["prefix_queries"] += scheduler.prefix_cache_stats.queries
            values["prefix_hits"] += scheduler.prefix_cache_stats.hits
        if iteration is not None:
            values["preemptions"] += iteration.num_preempted_reqs

    def take(self) -> dict[str, float]:
        """The numbers so far; they start again from 0."""
        taken = self._values
        self._reset()
        return taken


def start_llm(
    config: VllmConfig, *, engine_index: int, statistics: EngineStatistics | None = None
) -> AsyncLLM:
    """Start the engine of a configuration and load its model.

    Args:
        statistics: is told of every step of the engine.

    Raises:
        RunFailed: vLLM did not start.
    """
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class Recorder(PrometheusStatLogger):
        """Takes the place of vLLM's Prometheus counters, which cost time at every step."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record(self, scheduler_stats: Any, iteration_stats: Any, **_: Any) -> None:
            assert statistics is not None
            statistics.record(scheduler_stats, iteration_stats)

        def log(self) -> None: ...

        def log_engine_initialized(self) -> None: ...

        def record_admission_rejection(self, *_: Any) -> None: ...

        def record_sleep_state(self, *_: Any, **__: Any) -> None: ...

    recorders: list[Any] = [] if statistics is None else [Recorder]
    try:
        # `disable_log_stats`: without vLLM's own loggers.
        return AsyncLLM.from_vllm_config(config, stat_loggers=recorders, disable_log_stats=True)
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
