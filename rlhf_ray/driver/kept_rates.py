"""Learning rates of a run that goes on: those of its checkpoint, where the request names none.

A release may change its default rates. The run that went on would change its rate in its middle,
which no one has asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import TRAINING_STAGES
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoint_state import read_state
from rlhf_ray.run_folder.finished import read_finished


def with_kept_rates(
    config: Config, by_default: Callable[[], Collection[str]], report: Callable[[str], None]
) -> Config:
    """The configuration with the rates of the run in its folder that it goes on from.

    A rate that the request names stays, and its change is listed at the resume.

    Args:
        by_default: keys of the rates that the request leaves to the default; only called where
            there is a run to go on from.
        report: takes a line for every rate that is kept.
    """
    if config.stage.name not in TRAINING_STAGES or config.resume == "never":
        return config
    there, settings = _settings(config)
    if not settings:
        return config
    for key in by_default():
        before, default = settings.get(key), attrgetter(key)(config)
        if type(before) is not float or before == default:
            continue
        group = key.partition(".")[0]
        role = dataclasses.replace(getattr(config, group), learning_rate=before)
        config = dataclasses.replace(config, **{group: role})
        report(
            f"note: {key} is {before:g}, that of {there}: the run goes on with it, and not with "
            f"the default, which is {default:g} now; {key}={default:g} takes that"
        )
    return config


def _settings(config: Config) -> tuple[str, Mapping[str, Any]]:
    """Where the run is that this one goes on from, in words, and its settings; none if unknown."""
    folder = Path(config.output_dir)
    try:
        is_auto = config.resume == "auto"
        found = Checkpoints(folder, keep_last=1).committed()[::-1] if is_auto else []
    except RequestError:  # The stage refuses the folder in its own words.
        return "", {}
    checkpoints = found if is_auto else [Path(config.resume)]
    for checkpoint in checkpoints:
        # A damaged one is passed over, or refused, by the stage.
        with contextlib.suppress(RequestError):
            kept = read_state(checkpoint).get("configuration")
            return f"the checkpoint {checkpoint}", kept if isinstance(kept, dict) else {}
    finished = None if checkpoints else read_finished(folder)
    return ("", {}) if finished is None else ("the finished run in its folder", finished.settings)
