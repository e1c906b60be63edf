"""The time that chat templates write in a run: given, of the checkpoint, or of the start."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

from rlhf_ray.config.run import Config
from rlhf_ray.driver.checkpoints import Checkpoints, read_state

KEY = "model.template_time"


def with_template_time(config: Config) -> Config:
    """The configuration with a time for the templates of all processes of the run.

    A run that goes on from a checkpoint has the time of that checkpoint, so that its samples stay
    the same. A checkpoint of a release without it leaves the time open.

    Raises:
        RequestError: `resume` names no checkpoint.
    """
    if config.model.template_time is not None:
        return config
    folder = Checkpoints(Path(config.output_dir), keep_last=1).resolve(config.resume)
    if folder is None:
        time: str | None = datetime.now().isoformat(timespec="seconds")
    else:
        time = read_state(folder)["identity"].get(KEY)
    model = dataclasses.replace(config.model, template_time=time)
    return dataclasses.replace(config, model=model)
