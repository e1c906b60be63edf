"""What can go wrong with an engine, in this package's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_ray.config.errors import RunFailed


class EngineLost(RunFailed):
    """The vLLM engine process has ended; nothing more comes from it."""


class RequestFailed(Exception):  # noqa: N818 - as its neighbours, it reads as a sentence
    """vLLM refused one request, or lost it; the engine itself is well."""


@contextmanager
def engine_errors(engine_index: int) -> Iterator[None]:
    """vLLM's errors as `EngineLost` and `RequestFailed`."""
    # Here, because vLLM must not be imported before its environment is set.
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError:
        raise engine_lost(engine_index) from None
    except (VLLMError, ValueError) as error:
        raise RequestFailed(f"engine {engine_index}: {type(error).__name__}: {error}") from error


def engine_lost(engine_index: int) -> EngineLost:
    """The error for an engine that is dead, whichever way that was noticed."""
    return EngineLost(
        f"generator {engine_index}: its vLLM engine process has ended. The cause is in the "
        "generator's log; where there is none, the system has killed it, most often for want of "
        "memory: lower generation.kv_cache_gib or generation.max_num_seqs"
    )
