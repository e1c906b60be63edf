"""Libraries of the extra `data`, imported only when a step needs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from rlhf_ray.config.errors import RequestError


def library(module: str, *, key: str) -> ModuleType:
    """Import a module of the extra `data`.

    Args:
        key: the setting that asks for it, for the message.

    Raises:
        RequestError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RequestError(
            f"{key} needs {error.name}, which is not installed; install the extra `data`: "
            "launch/setup.sh data, or pip install 'rlhf_ray[data]'"
        ) from error
