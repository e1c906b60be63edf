"""The time that chat templates write in a run: given, of the checkpoint, or of the start."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoint_state import read_state

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
    model = dataclasses.replace(config.model, template_time=_time(config))
    return dataclasses.replace(config, model=model)


def _time(config: Config) -> str | None:
    folders = Checkpoints(Path(config.output_dir), keep_last=1)
    wanted = folders.resolve(config.resume)
    now = datetime.now().isoformat(timespec="seconds")
    if wanted is None:
        return now
    # All checkpoints of a run have one time; a damaged one is passed over when the run resumes.
    candidates = folders.committed()[::-1] if config.resume == "auto" else [wanted]
    for folder in candidates:
        try:
            return read_state(folder)["identity"].get(KEY)
        except RequestError:
            continue
    return now
