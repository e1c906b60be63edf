"""The form of a stage: a name, a description of what it would do, and the run itself.

A stage is a module with one object, `STAGE`, and a row in `config.stages`. The module imports
nothing heavy at its top: `stage=plan` describes any stage within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_ray.cluster.resource_plan import ResourcePlan, describe, plan_resources
from rlhf_ray.cluster.roles.run_roles import run_resources
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.run import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        describe: what `stage=plan` and `dry_run=true` print below the configuration; starts
            nothing.
        run: check the request, run the stage, return the exit status 0. Raises RequestError for a
            wrong request, before any worker starts, and RunFailed for a failure while running.
    """

    name: str
    describe: Callable[[Config], str]
    run: Callable[[Config], int]


def resource_plan(config: Config) -> ResourcePlan:
    """The actors and bundles of a stage that starts workers."""
    return plan_resources(run_resources(config), spread=config.placement.spread)


def describe_training(config: Config) -> str:
    """The batch and the placement of a stage that trains."""
    return (
        f"# Batch\n{render_rows(batch_table(config))}\n\n"
        f"# Placement: {config.placement.strategy}\n{describe(resource_plan(config))}"
    )
