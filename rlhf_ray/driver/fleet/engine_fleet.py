"""The fleet: which engines serve, which are suspect, and who comes in the place of a lost one.

An engine serves tokens that are trained on only after a completed publish and the gate. The waiter
tells the fleet of every loss (`lose`) and lets it look around during every wait (`look`). All of it
happens in the driver's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.fleet.accounts import RecoveryAccounts
from rlhf_ray.driver.fleet.incarnation import EngineState, Incarnation
from rlhf_ray.driver.fleet.parts import EngineReplacements, FleetEngines, FleetSettings
from rlhf_ray.losses import LossWaiter, Lost
from rlhf_ray.records import Prompt

# Signs of life that an engine is asked for within the time after which it counts as lost.
_PINGS_PER_SILENCE = 4
_POLL_S = 0.2


class EngineFleet:
    """The engines of a run with recovery; a `LossKeeper`. See the module.

    Args:
        engines: all of them, as they have started.
        clock, sleep: of the operating system, unless a test has its own.
    """

    def __init__(
        self,
        engines: FleetEngines,
        replacements: EngineReplacements,
        waiter: LossWaiter,
        *,
        settings: FleetSettings,
        accounts: RecoveryAccounts,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engines = engines
        self._replacements = replacements
        self._waiter = waiter
        self._settings = settings
        self._accounts = accounts
        self._clock = clock
        self._sleep = sleep
        self._publish_again: Callable[[], None] | None = None
        now = clock()
        self._places = [
            Incarnation(name=name, state=EngineState.STALE, since=now, takes_part=True)
            for name in engines.names
        ]
        self._num_restarts = 0
        self._pings = waiter.pending()
        self._looked = now
        self._receivers = engines.of(range(len(self._places)))
        self._serving: tuple[int, ...] = ()
        self._is_retired = False

    def restore_with(self, publish_again: Callable[[], None]) -> None:
        """Set what sends the newest weights to the engines, when none serves."""
        self._publish_again = publish_again

    def retire(self) -> None:
        """The last step is done: no engine is needed any more, and none is watched or replaced."""
        self._is_retired = True

    # --- Engines that take requests: `driver.roles.SamplingEngines`.

    @property
    def names(self) -> Sequence[MemberName]:
        return [place.name for place in self._places]

    @property
    def serving(self) -> Sequence[int]:
        return self._serving

    def ensure_serving(self) -> None:
        """Wait for a replacement and publish to it, if no engine serves.

        Raises:
            RunFailed: none has come in time, or the gate has refused too many.
        """
        while not self._serving:
            assert self._publish_again is not None
            self._publish_again()

    def issued_again(self, lost: Lost) -> None:
        self._accounts.issued_again(lost)

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        return self._engines.generate(engine, prompt, sample_indices, together=together)

    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call:
        return self._engines.abort(engine, prompt_ids)

    def statistics(self) -> list[Call]:
        return self._engines.of(self._serving).statistics()

    # --- Engines that take weights.

    def muster(self, *, takes_new: bool) -> Any:
        """The receivers of a publish: engines with weights, and replacements that have started.

        Waits for a replacement if there is no other engine.

        Args:
            takes_new: whether replacements may take part: the gate must follow. Where they may not
                and no engine has weights, one gets the policy and passes the gate first.

        Raises:
            RunFailed: none has started in time.
        """
        self._take_started()
        while not self._mustered(takes_new=takes_new):
            if takes_new:
                self._wait_for_replacement()
            else:
                self.ensure_serving()
        places = self._mustered(takes_new=takes_new)
        names = [self._places[place].name for place in places]
        if names != list(self._receivers.names):
            self._receivers = self._engines.of(places)
        for index, place in enumerate(self._places):
            place.takes_part = index in places
        return self._receivers

    @property
    def receivers(self) -> list[MemberName]:
        """The receivers of the last publish that are still there."""
        return [place.name for place in self._places if place.takes_part]

    def give_up(self, name: MemberName, reason: str) -> None:
        """A receiver did not answer in a publish: it counts as lost."""
        self._waiter.report_lost(name, what=f"{name} did not answer in a publish", reason=reason)

    def weight_version(self) -> list[Call]:
        return self._receivers.weight_version()

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return self._receivers.score_sequences(sequences)

    # --- The gate: `publish.publisher.Trials`.

    @property
    def on_trial(self) -> frozenset[MemberName]:
        """Replacements that have got weights and have not passed the gate."""
        return frozenset(
            place.name
            for place in self._places
            if place.takes_part and place.is_replacement and not place.has_weights
        )

    def passed(self, names: Collection[MemberName]) -> None:
        """These engines hold the published weights, as the gate has found: they serve."""
        for place in self._places:
            if place.name in names and place.state is EngineState.STALE:
                place.state = EngineState.SERVING
                self._accounts.back(place.name, step=self._waiter.step, now=self._clock())
        self._choose()

    def refuse(self, name: MemberName, reason: str) -> None:
        """The gate refuses a replacement: it never serves, and another one takes its place."""
        self._waiter.report_lost(name, what=f"{name} was refused by the gate", reason=reason)

    # --- Losses: `losses.LossKeeper`.

    def replaces(self, member: MemberName) -> bool:
        return any(place.name == member for place in self._places)

    def lose(self, lost: Lost) -> str:
        """Fence a lost engine and start the next one in its place; see `LossKeeper.lose`."""
        if self._is_retired:
            self._accounts.lost_unneeded(lost)
            return ""
        if words := self._refusal(lost):
            return words
        self._num_restarts += 1
        where = self._replacements.fence(lost.member)
        name = replace(lost.member, incarnation=lost.member.incarnation + 1)
        now = self._clock()
        self._accounts.lost(lost, where=where, next_engine=name, now=now)
        self._places[name.rank] = Incarnation(name=name, state=EngineState.STARTING, since=now)
        self._choose()
        self._replacements.begin(name)
        return ""

    def look(self) -> None:
        """Take in replacements that have started, and find engines that are silent."""
        if self._is_retired:
            return
        self._take_started()
        now = self._clock()
        settings = self._settings
        # The driver itself may have been away (stopped, or in a long computation): no answer was
        # taken meanwhile, which is not the engines' fault.
        away_s = now - self._looked
        self._looked = now
        if away_s > settings.silence_s / _PINGS_PER_SILENCE:
            for place in self._places:
                place.asked += away_s
        answered = {call for call, _ in self._pings.take_ready(phase="")}
        for place in list(self._places):
            if place.ping in answered:
                place.ping = None
            if place.is_started:
                self._listen(place, now)
            elif now - place.since > settings.start_s:
                limit = f"deadlines.start_s={settings.start_s:g}"
                self._report(place, f"did not start within {limit} s", "see its log")
        self._choose()

    # --- Accounts.

    def metrics(self) -> dict[str, float]:
        """Metrics of recovery since the last call."""
        serving = {"recovery/serving_engines": float(len(self._serving))}
        return self._accounts.metrics() | serving

    def _listen(self, place: Incarnation, now: float) -> None:
        """Ask an engine for a sign of life, or judge its silence."""
        silence_s = self._settings.silence_s
        silent_s = now - place.asked
        if place.ping is None:
            if place.state is EngineState.SUSPECT:
                place.state = EngineState.SERVING
            if silent_s >= silence_s / _PINGS_PER_SILENCE:
                place.ping = self._engines.ping(place.name.rank)
                place.asked = now
                self._pings.add(place.ping)
        elif silent_s >= silence_s:
            limit = f"recovery.silence_s={silence_s:g}"
            self._report(place, f"did not answer for {silent_s:.0f} s", f"the limit is {limit}")
        elif silent_s >= silence_s / 2 and place.state is EngineState.SERVING:
            place.state = EngineState.SUSPECT

    def _report(self, place: Incarnation, what: str, reason: str) -> None:
        self._waiter.report_lost(place.name, what=f"{place.name} {what}", reason=reason)

    def _take_started(self) -> None:
        for name in self._replacements.started():
            place = self._places[name.rank]
            if place.name == name:
                place.state = EngineState.STALE

    def _wait_for_replacement(self) -> None:
        settings = self._settings
        # Each replacement has its own limit (see `look`), and there are only so many of them.
        num_starts = max(0, settings.max_restarts - self._num_restarts) + 1
        wait_s = num_starts * (settings.start_s + settings.silence_s)
        deadline = self._clock() + wait_s
        while not self._mustered(takes_new=True):
            if self._clock() > deadline:
                states = "; ".join(f"{place.name}: {place.state.value}" for place in self._places)
                raise RunFailed(
                    f"no engine could take weights for {wait_s:.0f} s, though every one has "
                    f"deadlines.start_s={settings.start_s:g} s to start ({states}); see their logs"
                )
            self.look()
            self._sleep(_POLL_S)

    def _mustered(self, *, takes_new: bool) -> list[int]:
        return [
            index
            for index, place in enumerate(self._places)
            if place.has_weights or (takes_new and place.state is EngineState.STALE)
        ]

    def _choose(self) -> None:
        """Engines that take requests: those that serve, or else those that may yet answer."""
        by_state: dict[EngineState, list[int]] = {}
        for index, place in enumerate(self._places):
            by_state.setdefault(place.state, []).append(index)
        serving = by_state.get(EngineState.SERVING) or by_state.get(EngineState.SUSPECT) or ()
        self._serving = tuple(serving)

    def _refusal(self, lost: Lost) -> str:
        """The reason why the run cannot go on after this loss; "" if it can."""
        left = sum(place.has_weights and place.name != lost.member for place in self._places)
        words = self._settings.refusal(num_restarts=self._num_restarts, num_left=left)
        first = self._accounts.first
        return f"{words}. The first loss was: {first}" if words and first else words
