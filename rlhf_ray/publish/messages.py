"""Short messages between the ends of a channel, kept in the sender's store."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import psutil
from torch.distributed import PrefixStore, Store

from rlhf_ray.publish.channel import ChannelSettings, PeerLost, first_line

_FAILED, _ALL_JOINED = "failed", "all have joined"
# Time between two looks, during a wait, whether another end has failed.
LOOK_S = 1.0
# After a failure: time for the receivers to say that they live.
_SILENCE_S = 5.0
_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.0002, 0.005


class Messages:
    """One end's access to the store.

    Every wait ends early if another end says that it has failed: a process that lives but has given
    up would otherwise cost the whole deadline.
    """

    def __init__(self, store: Store, settings: ChannelSettings) -> None:
        self.store = PrefixStore(settings.name, store)
        self._settings = settings
        # Kept, because this process may be the one that serves it.
        self._served = store
        self._transfer = 0
        # Process ids of workers, by their number.
        self._watched: dict[int, int] = {}

    def join(self, worker: int) -> None:
        """Tell the sender that this worker is there, and wait for all others; raises PeerLost."""
        self.put(_joined(worker), f"{os.getpid()} {_process_names()}")
        self.wait([_ALL_JOINED], "not all workers have come")

    def assemble(self, workers: Sequence[int]) -> None:
        """Wait for these workers, then let them go on.

        Raises:
            PeerLost: names the workers that have not come.
        """
        try:
            self.wait([_joined(worker) for worker in workers], "not all workers have come")
        except PeerLost as error:
            missing = [worker for worker in workers if not self._have_come([_joined(worker)])]
            self.fail()
            raise PeerLost(f"{error.what}: {self._names(missing) or 'none is missing'}") from error
        self.put(_ALL_JOINED)

    def watch(self, workers: Sequence[int]) -> None:
        """Let every wait from now on end as soon as a process of these workers has ended.

        For workers on this machine, in this container: others are not seen, and not watched.
        """
        for worker in workers:
            pid, names = self.read(_joined(worker)).split()
            if names == _process_names():
                self._watched[worker] = int(pid)

    def begin(self) -> None:
        """Count the transfers; both ends do."""
        self._transfer += 1

    def done(self, worker: int) -> None:
        """Tell the sender that this worker has loaded all buckets of the transfer."""
        self.put(_done(self._transfer, worker))

    def wait_for_done(self, workers: Sequence[int]) -> None:
        """Wait until these workers have loaded all buckets; raises PeerLost."""
        keys = [_done(self._transfer, worker) for worker in workers]
        self.wait(keys, "not all workers have loaded all buckets")
        for key in keys:
            self.delete(key)

    def put(self, key: str, text: str = "-") -> None:
        """Set a message; raises PeerLost if the store has gone."""
        try:
            self.store.set(key, text)
        except RuntimeError as error:
            raise PeerLost(first_line(error)) from error

    def read(self, key: str) -> str:
        """A message that has come."""
        try:
            return self.store.get(key).decode()
        except RuntimeError as error:
            raise PeerLost(first_line(error)) from error

    def delete(self, key: str) -> None:
        """Forget a message that all have read."""
        self.store.delete_key(key)

    def wait(self, keys: Sequence[str], what: str) -> None:
        """Wait for all of these messages within the channel's deadline.

        Args:
            what: words for the failure.

        Raises:
            PeerLost: they did not come, or another end has failed.
        """
        timeout_s = self._settings.timeout_s
        now = time.monotonic()
        look, deadline = now + LOOK_S, now + timeout_s
        pause_s = _SHORTEST_POLL_S
        # Not the store's own wait: it could not look for failures meanwhile, and it writes a
        # warning with a stack each time that its limit passes.
        while not self._have_come(keys):
            now = time.monotonic()
            if now > look:
                self.check()
                look = now + LOOK_S
            if now > deadline:
                raise PeerLost(f"{what} within {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, _LONGEST_POLL_S)

    def check(self) -> None:
        """Raise PeerLost if another end has failed or ended, or the store has gone."""
        ended = [worker for worker, pid in self._watched.items() if _has_ended(pid)]
        if ended:
            raise PeerLost(f"the process of {self._names(ended)} has ended")
        if self._have_come([_FAILED]):
            raise PeerLost("another end has failed")

    def fail(self) -> None:
        """Tell all ends that this one has failed, if the store still answers."""
        try:
            self.store.set(_FAILED, "-")
        except RuntimeError:
            return

    def leave(self, worker: int) -> None:
        """Tell the sender that this worker has given up but lives; see `silent`."""
        self.fail()
        try:
            self.store.set(_left(worker), "-")
        except RuntimeError:
            return

    def silent(self, workers: Sequence[int]) -> str:
        """Name, after a failure, the workers that say neither that they live nor that all is done.

        Returns:
            "" if there are none.
        """
        deadline = time.monotonic() + _SILENCE_S
        missing = list(workers)
        while missing and time.monotonic() < deadline:
            missing = [worker for worker in missing if not self._is_heard(worker)]
            time.sleep(_LONGEST_POLL_S)
        return self._names(missing)

    def _is_heard(self, worker: int) -> bool:
        return self._have_come([_left(worker)]) or self._have_come([_done(self._transfer, worker)])

    def _have_come(self, keys: Sequence[str]) -> bool:
        try:
            return self.store.check(list(keys))
        except RuntimeError as error:
            raise PeerLost(first_line(error)) from error

    def _names(self, workers: Sequence[int]) -> str:
        return ", ".join(self._name(worker) for worker in workers)

    def _name(self, worker: int) -> str:
        """The engine of a worker, and its number there."""
        for engine, size in enumerate(self._settings.workers):
            if worker < size:
                return f"generator_{engine} (worker {worker} of {size})"
            worker -= size
        raise AssertionError("no such worker")


def _process_names() -> str:
    """The namespace in which process ids are those of this process."""
    return os.readlink("/proc/self/ns/pid")


def _has_ended(pid: int) -> bool:
    try:
        # A process that was killed stays as a zombie until its parent asks for it.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _joined(worker: int) -> str:
    return f"worker {worker} has joined"


def _done(transfer: int, worker: int) -> str:
    return f"transfer {transfer} done by {worker}"


def _left(worker: int) -> str:
    return f"left {worker}"
