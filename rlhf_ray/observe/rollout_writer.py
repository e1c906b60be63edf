"""A thread that writes rollout files, so that the next batch does not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rlhf_ray.observe.rollout_log import NO_DETAILS, TokenDetails, write_rollouts
from rlhf_ray.records import RolloutGroup

# Batches that wait are held in memory.
MAX_WAITING = 2


class RolloutWriter:
    """Writes files one after the other, in the order in which they were given.

    An error is raised by the next `write` or `flush`, and by all later ones.

    Args:
        write: writes one file, complete or not at all.
        max_waiting: batches that may wait, besides the one that is being written.
    """

    def __init__(
        self,
        write: Callable[[Path, Sequence[RolloutGroup], TokenDetails], None] = write_rollouts,
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._write = write
        self._max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-writer")
        self._files: deque[Future[None]] = deque()

    def write(
        self, path: Path, groups: Sequence[RolloutGroup], details: TokenDetails = NO_DETAILS
    ) -> None:
        """Hand over a batch; waits only if too many wait already.

        Raises:
            Exception: the error of an earlier file.
        """
        self._wait(self._max_waiting)
        self._files.append(self._thread.submit(self._write, path, groups, details))

    def flush(self) -> None:
        """Wait until every file is written.

        Raises:
            Exception: the error of a file.
        """
        self._wait(0)

    def _wait(self, allowed: int) -> None:
        """Wait until at most `allowed` files are not written."""
        while self._files and (len(self._files) > allowed or self._files[0].done()):
            self._files[0].result()  # A file that failed stays first, for all later calls.
            self._files.popleft()
