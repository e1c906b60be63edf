"""stage=plan, and dry_run of any stage: what a run would be, without starting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_ray.config.by_stage.default_rates import default_rates
from rlhf_ray.config.keys.readers import is_read
from rlhf_ray.config.keys.roles import is_of_unstarted_part
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import values_of
from rlhf_ray.data.sources.read import FROM_HUB
from rlhf_ray.models.location import is_hub_name
from rlhf_ray.run_folder.place import check_form
from rlhf_ray.stages.inputs import read_models
from rlhf_ray.stages.pipeline import waiting_steps
from rlhf_ray.stages.request_checks import describe_sources
from rlhf_ray.stages.rl.stage import STAGE as RL
from rlhf_ray.stages.stage import FolderUse, Stage
from rlhf_ray.stages.table import load_stage

_NOT_CHECKED = "not checked: "


def run(config: Config) -> int:
    """Print the plan of the chosen stage to stdout; returns exit status 0.

    Raises:
        RequestError: something is missing that the run would refuse at once.
    """
    name = config.stage.name
    described = RL if name == "plan" else load_stage(name)
    print(f"{_settings(config)}\n{described.describe(config)}", flush=True)
    # After the plan, which may be wanted where the model and the data are not.
    described.check(config)
    if described.folder is not FolderUse.NONE:
        check_form(Path(config.output_dir))
    for line in _not_checked(config):
        print(line, flush=True)
    return 0


def _settings(config: Config) -> str:
    """The keys that the stage reads and that differ from their defaults, as YAML."""
    defaults, values = values_of(Config()) | default_rates(config), values_of(config)
    # The stages of a pipeline have a section of their own.
    read = [key for key in values if is_read(key, config.stage.name) and key != "pipeline.stages"]
    differing = [key for key in read if values[key] != defaults[key]]
    changed = [key for key in differing if not is_of_unstarted_part(config, key)]
    unstarted = len(differing) - len(changed)
    more = f", {unstarted} are of parts that this run does not start" if unstarted else ""
    tree: dict[str, Any] = {}
    for key in changed:
        *groups, last = key.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = values[key]
    return (
        f"# Configuration: {len(changed)} keys; {len(read) - len(differing)} others that the stage "
        f"reads have their defaults{more} (--cfg job prints all)\n{OmegaConf.to_yaml(tree)}"
    )


def _not_checked(config: Config) -> list[str]:
    """A line about every model and data set that was not looked at, and about folders of files."""
    parts: list[tuple[str, Config, list[Path]]] = [("", config, [])]
    if config.stage.name == "pipeline":
        parts = [
            (f"pipeline.stages.{step.name}.", step.config, folders)
            for step, folders in waiting_steps(config)
        ]
    lines: list[str] = []
    for prefix, part, made_in in parts:
        named = [(model.key, model.path) for model in read_models(part)]
        if part.model.tokenizer_path is not None:
            named.append(("model.tokenizer_path", part.model.tokenizer_path))
        lines += [
            f"{_NOT_CHECKED}{prefix}{key}={path} {FROM_HUB}{_misspelt(path)}"
            for key, path in named
            if is_hub_name(path)
        ]
        for line in describe_sources(part, made_in=made_in):
            is_unchecked = line.startswith(_NOT_CHECKED)
            lines.append(
                f"{_NOT_CHECKED}{prefix}{line.removeprefix(_NOT_CHECKED)}"
                if is_unchecked
                else f"{prefix}{line}"
            )
    return lines


def _misspelt(path: str) -> str:
    """The end of the line about a hub name that may be a path: its first folder is here."""
    owner, slash, name = path.partition("/")
    is_here = bool(slash) and Path(owner).is_dir()
    return f" (there is a folder {owner} here, and no {name} in it)" if is_here else ""


# On its own it describes reinforcement learning.
STAGE = Stage(name="plan", describe=RL.describe, run=run, folder=FolderUse.NONE)
