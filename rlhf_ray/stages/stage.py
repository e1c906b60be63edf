"""The form of a stage: a name, a description of what it would do, and the run itself.

A stage is a module with one object, `STAGE`, and a row in `config.stages`. The module imports
nothing heavy at its top: `stage=plan` describes any stage within a second.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_ray.cluster.resource_plan import describe
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.planning.gpu_memory import memory_lines
from rlhf_ray.planning.hub import planned_model
from rlhf_ray.planning.step import step_lines
from rlhf_ray.planning.storage.disk import disk_lines
from rlhf_ray.planning.storage.snapshots import snapshot_lines


class FolderUse(enum.Enum):
    """The use that a stage makes of `output_dir`."""

    HELD = "writes into it, and holds its lock meanwhile"
    REPLACED = "writes next to it under a lock there, and replaces it at the end"
    NONE = "writes at most logs"


def no_check(_config: Config) -> None:
    """Nothing to check without the imports of the stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        check: refuses, within a second or two, what needs neither torch nor a tokenizer to be
            refused; `stage=plan` does so, too. Raises RequestError.
        look_ahead: refuses what takes seconds of imports to know, before anything of an earlier run
            in the folder is changed; no plan does so. Raises RequestError.
        folder: how it uses `output_dir`; see `stages.start`.
        describe: what `stage=plan` and `dry_run=true` print below the configuration; starts
            nothing.
        run: check the request, run the stage, return the exit status 0. Raises RequestError for a
            wrong request, before any worker starts, and RunFailed for a failure while running.
            A stage whose imports take seconds names its function by `run_in(module)`.
    """

    name: str
    describe: Callable[[Config], str]
    run: Callable[[Config], int]
    check: Callable[[Config], None] = no_check
    look_ahead: Callable[[Config], None] = no_check
    folder: FolderUse = FolderUse.HELD


def run_in(module: str) -> Callable[[Config], int]:
    """The function `run` of a module that is imported when the stage runs."""
    return lambda config: importlib.import_module(module).run(config)


def describe_training(config: Config) -> str:
    """The batch, the placement, the disk and the GPUs of a stage that trains."""
    disk = "\n".join(disk_lines(config))
    model = None
    with contextlib.suppress(RequestError):  # The check says it, after the plan.
        model = planned_model(config.model.path, seed=config.seed)
    gpus = [*memory_lines(config, model), *step_lines(config, model)]
    recovery = snapshot_lines(config)
    return "\n".join(
        [
            f"# Batch\n{render_rows(batch_table(config))}\n",
            f"# Placement: {config.placement.strategy}\n{describe(resource_plan(config))}\n",
            f"# Disk of {config.output_dir}\n{disk}",
            *(["\n# Memory and time", *gpus] if gpus else []),
            *(["\n# Recovery", *recovery] if recovery else []),
        ]
    )
