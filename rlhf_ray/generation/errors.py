"""Errors of an engine, and the translation of vLLM's errors into them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_ray.config.errors import RunFailed

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
# Time between two checks, during a call, that the engine is still alive.
_HEALTH_POLL_S = 1.0


class EngineLost(RunFailed):
    """The vLLM engine process has ended; it answers nothing more."""


class RequestFailed(Exception):  # noqa: N818 - as its neighbours, it reads as a sentence
    """vLLM refused or lost one request; the engine itself still works."""


async def answer(llm: AsyncLLM, engine_index: int, call: Coroutine[Any, Any, T]) -> T:
    """Await a call to vLLM.

    vllm 0.32.0, v1/engine/core_client.py: a call that the engine process holds when it ends is
    never answered, and a call that is sent while the client closes its sockets may not be either.
    So this checks the engine's health while it waits.

    Raises:
        EngineLost: the engine process has ended.
        RequestFailed: vLLM refused the call.
    """
    # Imported here, because vLLM's environment must be set before.
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError

    task = asyncio.ensure_future(call)
    try:
        while not task.done() and not llm.errored:
            await asyncio.wait({task}, timeout=_HEALTH_POLL_S)
        if task.done():
            return task.result()
    except EngineDeadError:
        pass
    except (VLLMError, ValueError) as error:
        raise RequestFailed(f"engine {engine_index}: {type(error).__name__}: {error}") from error
    except Exception:
        # An error of a dead engine, such as a socket closed during the call, becomes `EngineLost`.
        if not llm.errored:
            raise
    finally:
        task.cancel()
    raise engine_lost(engine_index) from None


def engine_lost(engine_index: int) -> EngineLost:
    """The error for a dead engine."""
    return EngineLost(
        f"generator {engine_index}: its vLLM engine process has ended. The cause is in the "
        "generator's log; if there is none, the system has killed the process, most often because "
        "it ran out of memory: lower generation.kv_cache_gib or generation.max_num_seqs"
    )
