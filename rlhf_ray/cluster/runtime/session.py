"""Joining or starting a Ray cluster, and reserving a plan's resources on it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlhf_ray.cluster.resource_plan import ResourcePlan, describe_nodes, missing
from rlhf_ray.cluster.runtime.address import check_ray_environment, is_open, joined_address
from rlhf_ray.cluster.runtime.ray_processes import GcsProbe, logs_folder, ray_processes
from rlhf_ray.cluster.runtime.ray_start import (
    Guardian,
    local_start,
    own_signal_handlers,
)
from rlhf_ray.cluster.runtime.watch import Watch
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.runtime import DeadlineConfig
from rlhf_ray.failure_report import say_failed
from rlhf_ray.interrupts import ABANDONED, EXIT_SIGNALS, EndOnSignal, current_handler

_POLL_S = 1.0
# A reservation takes a second or two where the resources are free.
_QUIET_S = 10.0
# It takes 1 to 4 s.
_SHUTDOWN_S = 8.0
# In the plain Exception of `ray.init`.
_TOO_SLOW = "timed out during startup"


def is_connected() -> bool:
    """Whether this process has a connection to Ray: a pipeline has one for all of its stages."""
    return ray.is_initialized()


@contextmanager
def connected(*, dashboard: bool, deadlines: DeadlineConfig, error_log: Path) -> Iterator[None]:
    """A connection to the cluster of `RAY_ADDRESS` (set inside a Ray job), or a local one.

    Call it in the main thread: signals are handled while it lasts.

    Args:
        dashboard: serve the dashboard of a local cluster; a joined one has its own.
        error_log: file for a failure that the main thread can no longer report.

    Raises:
        RequestError: the variables of Ray are wrong, or no cluster answers there.
        RunFailed: a process of Ray was lost, in place of the failure that this led to.
    """
    if is_connected():
        yield
        return
    check_ray_environment()
    address = joined_address()
    guardian = Guardian() if address is None else None
    handler = current_handler()
    before = {number: signal.getsignal(number) for number in EXIT_SIGNALS}
    handler.install()
    if is_open():
        handler.say("RAY_AUTH_MODE=disabled: Ray takes orders from everyone who reaches its ports")
    watch = Watch(
        silence_s=deadlines.ray_s,
        handler=handler,
        error_log=error_log,
        on_forced_end=guardian.dismiss if guardian else lambda: None,
        tend=(lambda: guardian.tend(handler.say)) if guardian else lambda: None,
    )
    try:
        with watch:
            try:
                with _with_cause(watch, handler):
                    _join_or_start(
                        address, guardian, watch, dashboard=dashboard, deadlines=deadlines
                    )
                    handler.install()  # Again: Ray's C++ has its own for SIGTERM.
                    yield
            finally:
                watch.look_away()
                _shut_down(guardian, is_lost=watch.fault is not None)
    finally:
        if guardian:
            guardian.end()
        for number, old in before.items():
            signal.signal(number, old)


def _join_or_start(
    address: str | None,
    guardian: Guardian | None,
    watch: Watch,
    *,
    dashboard: bool,
    deadlines: DeadlineConfig,
) -> None:
    # Workers log to their own files; Ray keeps them and shows them in the dashboard.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        probe = _probed(address, deadlines.ray_s)
        title = f"Joining the Ray cluster at {address}"
        with watch.limited(title, deadlines.start_s), own_signal_handlers():
            ray.init(address=address, **common)
    else:
        assert guardian is not None
        with watch.limited("The start of Ray on this machine", deadlines.start_s):
            start_local(guardian, dashboard=dashboard, **common)
        probe = GcsProbe(ray.get_runtime_context().gcs_address)
    watch.look_at(ray_processes(), probe, logs=logs_folder())


def start_local(guardian: Guardian, *, dashboard: bool, **options: Any) -> None:
    """Start a Ray of this machine alone, and connect to it.

    Args:
        options: of `ray.init`.

    Raises:
        Exception: of Ray; it has failed, or been too slow twice.
    """
    for is_last in (False, True):
        try:
            with own_signal_handlers(), local_start(guardian, dashboard=dashboard):
                ray.init(address="local", include_dashboard=dashboard, **options)
            return
        except Exception as error:
            # Ray 2.60: its raylet gives its agent, a process of Python, 15 s to come up, which a
            # busy machine does not keep. What is left of this start ends with the guardian.
            if is_last or _TOO_SLOW not in str(error):
                raise
            current_handler().say(
                "Ray did not come up on this machine within its own limits; starting it once more"
            )


def _probed(address: str, timeout_s: float) -> GcsProbe:
    """A probe of a cluster's GCS that has answered.

    Raises:
        RequestError: it has not; `ray.init` would wait for it without a limit.
    """
    probe = GcsProbe(address)
    if not probe.answers_within(timeout_s):
        probe.close()
        raise RequestError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there, within deadlines.ray_s="
            f"{timeout_s:g} s{f' ({probe.error})' if probe.error else ''}. See that its head node "
            f"runs, that the address is the one of the GCS (usually port 6379), and that "
            f"RAY_AUTH_MODE and the token are those of the cluster"
        )
    return probe


@contextmanager
def _with_cause(watch: Watch, handler: EndOnSignal) -> Iterator[None]:
    """Let the cause be raised: the signal, or the lost process of Ray, and not what followed."""
    try:
        yield
    except BaseException as error:
        if handler.interrupted:
            raise handler.interrupted from None
        if fault := watch.fault or watch.find_lost():
            is_worker = isinstance(error, RunFailed)  # A worker that needed it failed first.
            followed = f"\n--- what followed from it:\n{error}" if is_worker else ""
            watch.fault = fault
            say_failed(fault, "ending Ray and writing the report")
            raise RunFailed(f"{fault}{followed}") from None
        if interruption := _interruption_behind(error):
            raise interruption from None
        raise
    if handler.interrupted:  # Whoever caught it has gone on; the run is not to.
        raise handler.interrupted


def _interruption_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The Ctrl-C that an error came from: an orderly end fails when what it ends is gone."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            return behind
        behind = behind.__context__
    return None


def _shut_down(guardian: Guardian | None, *, is_lost: bool) -> None:
    """`ray.shutdown`, with a limit: it waits for a stopped raylet or GCS for ever.

    Args:
        is_lost: a process of Ray is gone or hangs, so that there is nothing to end in order.
    """
    if is_lost and guardian:
        guardian.end()
    thread = threading.Thread(target=ray.shutdown, name=ABANDONED, daemon=True)
    thread.start()
    thread.join(_SHUTDOWN_S)
    if thread.is_alive() and guardian:
        guardian.end()  # What it waits for is then gone.
        thread.join(_SHUTDOWN_S)


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
        raise RequestError(_too_small(plan, lacking))
    if lacking:
        current_handler().say(
            f"waiting up to placement.wait_s={wait_s:g} s for nodes to join: {'; '.join(lacking)}"
        )
    # Ray refuses bundles without any resource: those are not reserved.
    group = placement_group([dict(bundle) for bundle in plan.bundles], strategy=plan.strategy)
    try:
        _wait_for(group, plan, wait_s=wait_s, timeout_s=timeout_s)
        yield group
    finally:
        remove_placement_group(group)


def _wait_for(
    group: PlacementGroup, plan: ResourcePlan, *, wait_s: float, timeout_s: float
) -> None:
    """Wait `wait_s` for nodes that the plan lacks, and `timeout_s` for what others hold."""
    started, has_said = time.monotonic(), wait_s > 0
    while not _is_ready(group):
        waited_s = time.monotonic() - started
        if waited_s > _QUIET_S and not has_said:
            has_said = True
            current_handler().say(
                f"waiting up to deadlines.start_s={timeout_s:g} s for CPUs and GPUs that other "
                f"jobs of this Ray cluster hold"
            )
        if waited_s <= wait_s:
            continue
        lacking = missing(plan, _nodes())
        if lacking or waited_s > timeout_s:
            raise RequestError(_too_small(plan, lacking, waited_s=waited_s))


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


def _too_small(plan: ResourcePlan, lacking: list[str], *, waited_s: float | None = None) -> str:
    reason = "; ".join(lacking) if lacking else "its resources are taken by other jobs"
    when = "" if waited_s is None else f" after a wait of {waited_s:.0f} s"
    fix = "add nodes, or let an autoscaler add them with placement.wait_s"
    if waited_s is not None and lacking:
        fix = (
            "or see in `ray status` that the autoscaler has a type of node for such a bundle and "
            "could start it, and raise placement.wait_s if it needs longer"
        )
    return (
        f"the Ray cluster is too small{when}: {reason}. It has {describe_nodes(_nodes())}; the "
        f"whole run needs {plan.totals['GPU']:g} GPUs and {plan.totals['CPU']:g} CPUs. Lower "
        f"num_ranks, num_engines, num_cpus or num_gpus of the roles named, {fix}"
    )
