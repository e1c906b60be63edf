"""Import of the chosen stage; the table of stages is `rlhf_ray.config.stages`."""

from __future__ import annotations

import importlib

from rlhf_ray.config.stages import STAGES
from rlhf_ray.stages.stage import Stage


def load_stage(name: str) -> Stage:
    """The stage of this name: the object `STAGE` of its module."""
    return importlib.import_module(STAGES[name].module).STAGE
