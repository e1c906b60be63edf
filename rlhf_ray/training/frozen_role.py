"""What every role that nobody trains has in common: an engine without an optimizer."""

from __future__ import annotations

from rlhf_ray.training.engine.deepspeed_engine import FrozenEngine, stop_process


class FrozenRole:
    """One rank of a model that only computes; subclasses say what, and start the engine."""

    _started: FrozenEngine | None = None

    def close(self) -> None:
        """Leave the process group; the role is of no use afterwards."""
        if self._started is not None:
            self._started.close()
            self._started = None
            stop_process()
