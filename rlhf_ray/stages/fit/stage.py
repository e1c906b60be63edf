"""The run of a stage that learns from examples in the same way under every configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_ray.config.run import Config
    from rlhf_ray.stages.fit.inputs import FitStage


def runs(make: Callable[[], FitStage[Any]]) -> Callable[[Config], int]:
    """A function that makes the stage and runs it, with its imports when it is called."""

    def run(config: Config) -> int:
        from rlhf_ray.stages.fit.run import run_fit

        return run_fit(config, make())

    return run
