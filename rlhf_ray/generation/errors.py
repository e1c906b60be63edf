"""What can go wrong with an engine, in this package's words."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_ray.config.errors import RunFailed

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
# How often a call that waits looks whether the engine is still alive.
_HEALTH_POLL_S = 1.0


class EngineLost(RunFailed):
    """The vLLM engine process has ended; nothing more comes from it."""


class RequestFailed(Exception):  # noqa: N818 - as its neighbours, it reads as a sentence
    """vLLM refused one request, or lost it; the engine itself is well."""


async def answer(llm: AsyncLLM, engine_index: int, call: Coroutine[Any, Any, T]) -> T:
    """What vLLM answers to a call; its errors as `EngineLost` and `RequestFailed`.

    vllm 0.32.0, v1/engine/core_client.py: a call that the engine process has when it ends is
    never answered, and one that is sent while the client closes its sockets may not be either.
    So whoever waits looks at the engine too.
    """
    # Here, because vLLM must not be imported before its environment is set.
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
        # Such as that of a socket which was closed under the call.
        if not llm.errored:
            raise
    finally:
        task.cancel()
    raise engine_lost(engine_index) from None


def engine_lost(engine_index: int) -> EngineLost:
    """The error for an engine that is dead, whichever way that was noticed."""
    return EngineLost(
        f"generator {engine_index}: its vLLM engine process has ended. The cause is in the "
        "generator's log; where there is none, the system has killed it, most often for want of "
        "memory: lower generation.kv_cache_gib or generation.max_num_seqs"
    )
