"""Deaths of workers, told apart: killed, out of memory, gone with their node."""

from __future__ import annotations

import re

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)

from rlhf_ray.generation.errors import EngineLost

_NUM_USERS = 5
_MAX_LENGTH = 600
# The words of Ray 2.60 about its memory monitor, in OutOfMemoryError and in the error of an actor.
_MEMORY = re.compile(r"Memory on the node \(IP: (?P<ip>[^,]+),.*?was (?P<use>\S+ used / \S+ limit)")
_USER = re.compile(r"^(?P<pid>\d+)\t(?P<gb>[\d.]+)\t(?P<command>.+)$", re.MULTILINE)


def is_death(error: RayError) -> bool:
    """Whether the worker is gone, as opposed to a call of it that failed."""
    deaths = ActorDiedError | ActorUnavailableError | NodeDiedError | OutOfMemoryError
    return isinstance(error, deaths)


def is_loss(error: RayError) -> bool:
    """Whether the worker is of no use any more, and its place is: its process or engine has ended.

    Not if its node is lost: what it needs is lost with it.
    """
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, EngineLost)
    return is_death(error) and not _is_of_node(error)


def headline(name: str, error: RayError) -> str:
    """The failure of a worker in some words."""
    if not is_death(error):
        return f"{name} failed"
    text = str(error)
    if _MEMORY.search(text):
        return f"{name} was ended, because its node ran out of memory"
    if _is_of_node(error):
        return f"the node of {name} died"
    return f"{name} died"


def _is_of_node(error: RayError) -> bool:
    return "node has died" in str(error) or isinstance(error, NodeDiedError)


def cause(error: RayError) -> str:
    """The reason, as far as Ray knows it."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if memory := _MEMORY.search(str(error)):
        return _memory_words(memory, str(error))
    return " ".join(str(error).split())[:_MAX_LENGTH]


def _memory_words(memory: re.Match[str], text: str) -> str:
    users = [
        f"process {user['pid']} {user['gb']} GB ({user['command'].strip()})"
        for user in _USER.finditer(text)
    ]
    return (
        f"Ray's memory monitor ended it on {memory['ip']} with {memory['use']}. The largest there: "
        f"{', '.join(users[:_NUM_USERS]) or 'not known'}. Use fewer workers per node, smaller "
        f"batches, or nodes with more memory"
    )
