"""Import of the chosen stage; the table of stages is `rlhf_ray.config.stages`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import STAGES


def import_stage(name: str) -> Callable[[Config], int]:
    """The function that runs a stage; with it comes everything heavy that the stage needs."""
    return importlib.import_module(STAGES[name].module).run
