"""Joining or starting a Ray cluster, and reserving a plan's resources on it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlhf_ray.cluster.resource_plan import ResourcePlan, missing
from rlhf_ray.config.errors import RequestError

_POLL_S = 1.0


@contextmanager
def connected(*, dashboard: bool) -> Iterator[None]:
    """A connection to the cluster of `RAY_ADDRESS` (set inside a Ray job), or a local one.

    Args:
        dashboard: serve the dashboard of a local cluster; a joined one has its own.
    """
    if ray.is_initialized():  # A pipeline is connected for all of its stages.
        yield
        return
    # Workers log to their own files; Ray keeps them and shows them in the dashboard.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**common)
    else:
        ray.init(
            address="local",
            include_dashboard=dashboard,
            # The project as this process sees it, also where it is run without an install.
            runtime_env={"env_vars": {"PYTHONPATH": _import_path()}},
            **common,
        )
    # `ray job stop`, Slurm and Kubernetes end a run with SIGTERM: leave in order then, too.
    # After ray.init, which has its own handler that ends the process at once.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def reserved(plan: ResourcePlan, *, wait_s: float, timeout_s: float) -> Iterator[PlacementGroup]:
    """The plan's bundles as one placement group.

    Args:
        wait_s: how long nodes may take to join (an autoscaler starts them on this request);
            0 refuses a cluster that is too small now.

    Raises:
        RequestError: the cluster is too small; says what is missing.
    """
    lacking = missing(plan, _nodes())
    if lacking and wait_s <= 0:
        raise RequestError(_too_small(lacking))
    # Ray refuses bundles without any resource: those are not reserved.
    group = placement_group([dict(bundle) for bundle in plan.bundles], strategy=plan.strategy)
    try:
        deadline = time.monotonic() + max(wait_s, timeout_s)
        while not _is_ready(group):
            if time.monotonic() > deadline:
                raise RequestError(_too_small(missing(plan, _nodes())))
        yield group
    finally:
        remove_placement_group(group)


def _is_ready(group: PlacementGroup) -> bool:
    try:
        ray.get(group.ready(), timeout=_POLL_S)
    except GetTimeoutError:
        return False
    return True


def _nodes() -> list[dict[str, float]]:
    return [
        {"CPU": node["Resources"].get("CPU", 0.0), "GPU": node["Resources"].get("GPU", 0.0)}
        for node in ray.nodes()
        if node["Alive"]
    ]


def _too_small(lacking: list[str]) -> str:
    reason = "; ".join(lacking) if lacking else "its resources are taken by other jobs"
    return (
        f"the Ray cluster is too small: {reason}. It has {_nodes()}. Lower num_ranks, num_engines, "
        f"num_cpus or num_gpus of the roles named, add nodes, or let an autoscaler add them with "
        f"placement.wait_s"
    )


def _import_path() -> str:
    package_parent = str(Path(__file__).resolve().parents[3])
    existing = os.environ.get("PYTHONPATH", "")
    return f"{package_parent}{os.pathsep}{existing}" if existing else package_parent
