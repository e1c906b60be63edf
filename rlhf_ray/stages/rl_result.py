"""What a run leaves behind as models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from rlhf_ray.calls import Call
from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.config.run import Config
from rlhf_ray.stages.trained_part import split_off_adapter


def save_models(config: Config, system: System) -> None:
    """Write model/, adapter/ where one was trained, model_ema/ where the policy was averaged."""
    _save(config, system, "model", system.learner.save_model)
    split_off_adapter(Path(config.output_dir))
    if config.training.ema_decay is not None:
        _save(config, system, "model_ema", system.learner.save_average)


def _save(config: Config, system: System, name: str, write: Callable[[Path], list[Call]]) -> None:
    """Write a folder beside its place and move it there whole."""
    final = Path(config.output_dir) / name
    partial = final.with_name(f"{name}.partial")
    system.supervisor.results(
        write(partial), phase="checkpoint", timeout_s=config.deadlines.checkpoint_s
    )
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
