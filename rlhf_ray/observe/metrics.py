"""Writers of a step's metrics: JSON lines, TensorBoard, Ray's metrics endpoint."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.runtime import ObserveConfig
from rlhf_ray.disk_space import full_disk_said

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

_GAUGE_PREFIX = "rlhf_ray_"
_MAX_SHOWN = 120


class MetricsWriter(Protocol):
    """Takes the metrics of one step at a time, in order of steps."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step. Names as in `reward/mean`."""
        ...

    def close(self) -> None:
        """Flush and close files. Safe to call twice."""
        ...


class JsonlWriter:
    """metrics.jsonl: one flat JSON object per step, complete on disk after every write.

    A value that is not finite is written as null: NaN is not JSON.

    Args:
        last_step: step after which the run continues. Lines of later steps, which a killed run
            had written, are removed. 0 starts an empty file; None only appends.
    """

    def __init__(self, path: Path, *, last_step: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _keep_steps(path, last_step)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricsWriter.write`.

        Raises:
            DiskFull: the disk is full.
            RunFailed: the file was deleted or replaced, and later lines would be lost.
        """
        values = {name: _finite_or_none(value) for name, value in metrics.items()}
        with full_disk_said(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if not _is_open_file(self._path, self._file.fileno()):
            raise RunFailed(
                f"{self._path} was deleted, moved or replaced while the run was writing to it; "
                f"start the run again in a folder that stays"
            )

    def close(self) -> None:
        self._file.close()


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the complete lines of a metrics.jsonl; null becomes NaN.

    Raises:
        ValueError: a line that is not a half-written last one is not a step's metrics.
    """
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for row in _complete_rows(path)
    ]


def check_metrics(path: Path) -> None:
    """Refuse a metrics.jsonl that a resumed run could not go on with, before it starts.

    Raises:
        RequestError: see `read_metrics`.
    """
    if not path.exists():
        return
    try:
        _complete_rows(path)
    except ValueError as error:
        raise RequestError(str(error)) from error


class TensorBoardWriter:
    """TensorBoard event files. A resumed run hides the old run's steps after `last_step`."""

    def __init__(self, folder: Path, *, last_step: int | None) -> None:
        # Imported here: it takes a second, and TensorBoard is optional.
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if last_step is None else last_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class GaugeWriter:
    """Ray gauges, which appear at the Prometheus endpoint of the driver's node.

    `reward/mean` becomes rlhf_ray_reward_mean with the tag `run`; Ray adds the prefix `ray_`.
    """

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._taken: set[str] = set()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in {**metrics, "step": float(step)}.items():
            if name not in self._gauges:
                self._gauges[name] = self._make_gauge(name)
            self._gauges[name].set(value, tags=self._tags)

    def close(self) -> None:
        """Nothing to do: Ray exports the last values until the driver leaves."""

    def _make_gauge(self, name: str) -> Gauge:
        from ray.util.metrics import Gauge

        # Two metrics may have the same valid name, such as a/b and a_b.
        unique = gauge_name(name)
        while unique in self._taken:
            unique += "_"
        self._taken.add(unique)
        return Gauge(unique, description=f"rlhf_ray metric {name}", tag_keys=("run",))


class CombinedWriter:
    """Passes every step to several writers, and closes all even if one fails."""

    def __init__(self, writers: Sequence[MetricsWriter]) -> None:
        self._writers = tuple(writers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        # The stack calls every `close`, also after one has raised.
        with ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)


def make_writer(
    observe: ObserveConfig, output_dir: Path, *, run: str, last_step: int | None
) -> CombinedWriter:
    """Make the configured writers.

    Args:
        run: name of the run, used as the tag of its gauges.
        last_step: see `JsonlWriter`.
    """
    writers: list[MetricsWriter] = [JsonlWriter(output_dir / "metrics.jsonl", last_step=last_step)]
    if observe.tensorboard:
        writers.append(TensorBoardWriter(output_dir / "tensorboard", last_step=last_step))
    if observe.ray_metrics:
        writers.append(GaugeWriter(run))
    return CombinedWriter(writers)


def gauge_name(metric: str) -> str:
    """Valid Prometheus name of a metric: letters, digits and underscores, after a prefix."""
    return _GAUGE_PREFIX + re.sub(r"[^A-Za-z0-9_]", "_", metric)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _complete_rows(path: Path) -> list[dict[str, Any]]:
    """Parse every line of the file; a half-written last line is left out."""
    # Bytes that are not UTF-8 damage their line, and not the others.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        is_last = number == len(lines)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and _is_of_a_step(row):
            rows.append(row)
        elif not is_last:
            shown = line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}..."
            raise ValueError(
                f"{path}, line {number}, holds no metrics of a step: {shown!r}; move the file "
                "away, or remove the line"
            )
    return rows


def _is_of_a_step(row: Mapping[str, Any]) -> bool:
    """Whether a line has the number of its step, and numbers alone; null is no finite one."""
    values = (value for value in row.values() if value is not None)
    return type(row.get("step")) is int and all(isinstance(v, int | float) for v in values)


def _keep_steps(path: Path, last_step: int | None) -> None:
    """Rewrite the file without a half-written line and without steps after `last_step`."""
    kept = [
        json.dumps(row) + "\n"
        for row in _complete_rows(path)
        if last_step is None or row["step"] <= last_step
    ]
    write_atomically(path, "".join(kept))
