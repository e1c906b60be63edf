"""stage=plan, and dry_run of any stage: what a run would be, without starting anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_ray.config.keys.readers import is_read
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import values_of
from rlhf_ray.config.stages import TRAINING_STAGES
from rlhf_ray.disk_space import space_of
from rlhf_ray.models.location import is_hub_name
from rlhf_ray.stages.gpu_memory import checkpoint_bytes, local_model, model_size
from rlhf_ray.stages.inputs import read_models
from rlhf_ray.stages.pipeline import read_steps
from rlhf_ray.stages.rl.stage import STAGE as RL
from rlhf_ray.stages.stage import FolderUse, Stage
from rlhf_ray.stages.table import load_stage

_GB = 1e9


def run(config: Config) -> int:
    """Print the plan of the chosen stage to stdout; returns exit status 0.

    Raises:
        RequestError: something is missing that the run would refuse at once.
    """
    name = config.stage.name
    described = RL if name == "plan" else load_stage(name)
    print(f"{_settings(config)}\n{described.describe(config)}", flush=True)
    for line in _disk_lines(config):
        print(line, flush=True)
    # After the plan, which may be wanted where the model and the data are not.
    described.check(config)
    for line in _not_checked(config):
        print(line, flush=True)
    return 0


def _settings(config: Config) -> str:
    """The keys that the stage reads and that differ from their defaults, as YAML."""
    defaults, values = values_of(Config()), values_of(config)
    # The stages of a pipeline have a section of their own.
    read = [key for key in values if is_read(key, config.stage.name) and key != "pipeline.stages"]
    changed = [key for key in read if values[key] != defaults[key]]
    tree: dict[str, Any] = {}
    for key in changed:
        *groups, last = key.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = values[key]
    return (
        f"# Configuration: {len(changed)} keys; {len(read) - len(changed)} others that the stage "
        f"reads have their defaults (--cfg job prints all)\n{OmegaConf.to_yaml(tree)}"
    )


def _disk_lines(config: Config) -> Iterator[str]:
    """The disk of the output, and what checkpoints take of it."""
    if config.stage.name not in TRAINING_STAGES:
        return
    place = f"on {space_of(Path(config.output_dir))}"
    every, kept = config.checkpoint.every_steps, config.checkpoint.keep_last
    if not every:
        yield f"\n# Disk\nno checkpoints (checkpoint.every_steps=0), the final model {place}"
        return
    model = local_model(config.model.path)
    size = model_size(model) if model is not None else None
    # A new checkpoint is whole before the oldest goes.
    one = (
        "of unknown size" if size is None else f"of at least {_gb(checkpoint_bytes(config, size))}"
    )
    in_all = "" if size is None else f", {_gb((kept + 1) * checkpoint_bytes(config, size))} in all"
    yield f"\n# Disk\nat most {kept + 1} checkpoints {one}{in_all}, every {every} steps, {place}"


def _not_checked(config: Config) -> list[str]:
    """A line about every model that is not on this machine and was not looked at."""
    is_pipeline = config.stage.name == "pipeline"
    parts = (
        {f"pipeline.stages.{s.name}.": s.config for s in read_steps(config)} if is_pipeline else {}
    )
    return [
        f"not checked: {prefix}{model.key}={model.path} is read from the hub when the run starts"
        for prefix, part in (parts or {"": config}).items()
        for model in read_models(part)
        if is_hub_name(model.path)
    ]


def _gb(number: float) -> str:
    return f"{number / _GB:.3g} GB"


# On its own it describes reinforcement learning.
STAGE = Stage(name="plan", describe=RL.describe, run=run, folder=FolderUse.NONE)
