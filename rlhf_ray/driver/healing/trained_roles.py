"""The roles that train, over the losses of their ranks.

If a rank is lost, the ranks of learner and critic are ended and started again in their places. They
get the states of the last snapshot, or of the last checkpoint, or start from the model's files. The
updates since then are done again from the records that the driver has kept: references to the
experience, texts and coefficients. So the roles are where they were, nothing is sampled again, and
whoever had asked them asks again (`TrainedRoles.do`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from rlhf_ray.calls import MemberName
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.fleet.accounts import RecoveryAccounts
from rlhf_ray.driver.healing.parts import HealingSettings, Restarts, SavedRoles, StatefulRole
from rlhf_ray.driver.healing.snapshots import Snapshots
from rlhf_ray.driver.updates.trainer import UpdateInputs
from rlhf_ray.losses import LossWaiter, Lost, MemberLost
from rlhf_ray.publish.channel_transport import ChannelFailed

P = ParamSpec("P")
T = TypeVar("T")


class TrainedRoles:
    """Learner and critic of a run with recovery; a `LossKeeper`. See the module.

    Args:
        roles: by the names of their folders in a checkpoint.
        clock: of the operating system, unless a test has its own.
    """

    def __init__(
        self,
        roles: Mapping[str, StatefulRole],
        restarts: Restarts,
        waiter: LossWaiter,
        *,
        settings: HealingSettings,
        accounts: RecoveryAccounts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roles = roles
        self._restarts = restarts
        self._waiter = waiter
        self._settings = settings
        self._accounts = accounts
        self._clock = clock
        self._snapshots = Snapshots(roles, waiter)
        self._updates: list[UpdateInputs] = []
        self._num_lost: Counter[str] = Counter()
        # Losses that the roles are not healed of yet.
        self._open: list[Lost] = []
        # Ranks that were ended with a lost one: what becomes of their calls is no loss of its own.
        self._ended: set[MemberName] = set()
        self._saved: SavedRoles | None = None
        self._replay: Callable[[UpdateInputs], None] | None = None
        self._forget: Sequence[Callable[[], None]] = ()

    def attach(
        self,
        *,
        replay: Callable[[UpdateInputs], None],
        saved: SavedRoles,
        forget: Sequence[Callable[[], None]],
    ) -> None:
        """From now on losses are borne: the roles have their first state.

        Args:
            replay: does an update again.
            forget: called before a restart, for parts that know ranks which are gone.
        """
        self._replay, self._saved, self._forget = replay, saved, tuple(forget)

    def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work that asks the roles; after a loss heal them, and do it again.

        Raises:
            RunFailed: the run cannot go on, or something else has failed.
        """
        while True:
            # A rank that has died while it was idle is noticed here.
            self._snapshots.take_in()
            self._heal()
            try:
                return work(*args, **kwargs)
            except RunFailed as error:
                self._take_for_lost(error)
                if not self._is_healed_of(error):
                    raise

    def note(self, inputs: UpdateInputs) -> None:
        """Keep what an update has read, until a snapshot has its result."""
        self._updates.append(inputs)

    def step_done(self, step: int) -> None:
        """`step` steps are done, and their weights published: take a snapshot if one is due."""
        self._snapshots.take_in()
        if last := self._snapshots.last:
            self._accounts.snapshot_bytes = last.num_bytes
        every = self._settings.snapshot_every
        if every and step % every == 0 and not self._open:
            self._snapshots.begin(step)
        source = last.step if last else self._saved_step()
        self._updates = [inputs for inputs in self._updates if inputs.step >= source]

    # --- Losses: `losses.LossKeeper`.

    def replaces(self, member: MemberName) -> bool:
        is_known = member in self._restarts.names or member in self._ended
        return self._replay is not None and is_known

    def lose(self, lost: Lost) -> str:
        """End all ranks of the roles; see `LossKeeper.lose`."""
        if lost.member in self._ended:
            return ""
        if words := self._refusal(lost):
            return words
        self._num_lost[lost.member.role] += 1
        self._open.append(lost)
        self._snapshots.drop_begun()
        where = self._restarts.end()
        self._ended.update(where)
        where_it_was = where.get(lost.member, "unknown")
        self._accounts.rank_lost(lost, where=where_it_was, now=self._clock())
        return ""

    def look(self) -> None:
        """No-op: a rank that computes answers nothing; its deadline is that of its call."""

    # --- Healing.

    def _refusal(self, lost: Lost) -> str:
        """The reason why the run cannot go on after this loss; "" if it can."""
        limit, role = self._settings.max_restarts, lost.member.role
        words = ""
        if self._num_lost[role] >= limit:
            words = f"the run has restarted its {role} recovery.max_restarts={limit} times"
        elif lost.phase == "refresh" and self._settings.averages_reference:
            words = "the reference may have averaged some of these weights in, and others not"
        first = self._accounts.first
        return f"{words}. The first loss was: {first}" if words and first else words

    def _take_for_lost(self, error: RunFailed) -> None:
        """The ends of a channel that say nothing after a failure: a rank that hangs."""
        if isinstance(error, ChannelFailed):
            reason = str(error).splitlines()[0]
            for name in error.silent:
                if self.replaces(name):
                    what = f"{name} did not answer in a publish"
                    self._waiter.report_lost(name, what=what, reason=reason)

    def _is_healed_of(self, error: RunFailed) -> bool:
        """Whether a failure is a loss of these roles, or the failure of a channel after one."""
        if isinstance(error, MemberLost) and error.lost.member in self._ended:
            return True
        if not self._open:
            return False
        if isinstance(error, MemberLost):
            return error.lost.member.role in self._roles
        return isinstance(error, ChannelFailed)

    def _heal(self) -> None:
        while self._open:
            try:
                self._restart()
            except MemberLost as error:
                # Another rank was lost meanwhile, and all are ended: again from the start.
                if not self._is_healed_of(error):
                    raise

    def _restart(self) -> None:
        assert self._replay is not None
        healed = tuple(self._open)
        for forget in self._forget:
            forget()
        self._restarts.start()
        step, source = self._bring_back()
        again = [inputs for inputs in self._updates if inputs.step >= step]
        for inputs in again:
            self._replay(inputs)
        assert len(self._open) == len(healed), "a loss ends the work that it happens in"
        self._open.clear()
        self._accounts.ranks_back(
            healed,
            names=sorted(self._restarts.names, key=str),
            step=self._waiter.step,
            source=source,
            num_again=len(again),
            now=self._clock(),
        )

    def _bring_back(self) -> tuple[int, str]:
        """Give the ranks the newest state that there is; returns its step, and its source."""
        if snapshot := self._snapshots.last:
            calls = [
                call
                for name, role in self._roles.items()
                for call in role.restore_state(snapshot.states[name])
            ]
            self._waiter.results(calls, phase="checkpoint", timeout_s=self._settings.restore_s)
            return snapshot.step, f"the snapshot of step {snapshot.step}"
        assert self._saved is not None
        if newest := self._saved.newest:
            step, folder = newest
            self._saved.load_roles(folder, self._roles.keys())
            return step, str(folder)
        return 0, "the model's files"

    def _saved_step(self) -> int:
        newest = self._saved.newest if self._saved else None
        return newest[0] if newest else 0
