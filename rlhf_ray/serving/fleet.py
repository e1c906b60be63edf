"""The replicas of a model: choice of the next one, state of the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.serving.openai_errors import Refused
from rlhf_ray.serving.replica import Replica, ReplicaState, Report


class Fleet:
    """Replicas that share the requests.

    Args:
        max_in_flight: limit of the answers in flight over all replicas.
        report: called with lines for the user.
    """

    def __init__(self, replicas: Sequence[Replica], *, max_in_flight: int, report: Report) -> None:
        self.replicas = tuple(replicas)
        self.max_in_flight = max_in_flight
        self._report = report

    @property
    def num_ready(self) -> int:
        return sum(replica.state is ReplicaState.READY for replica in self.replicas)

    @property
    def in_flight(self) -> int:
        return sum(replica.in_flight for replica in self.replicas)

    @property
    def context_tokens(self) -> int | None:
        """Longest prompt and answer of the model; None until a replica knows it."""
        return next((r.context_tokens for r in self.replicas if r.context_tokens), None)

    @property
    def state(self) -> ReplicaState:
        """Ready if any replica is ready, failed if all have failed."""
        states = {replica.state for replica in self.replicas}
        for state in (ReplicaState.READY, ReplicaState.STARTING):
            if state in states:
                return state
        return ReplicaState.FAILED

    def next_replica(self, num_answers: int = 1, *, besides: Collection[Replica] = ()) -> Replica:
        """The ready replica with the fewest requests.

        Args:
            num_answers: answers that the request asks for.
            besides: replicas to leave out, because this request could not reach them.

        Raises:
            Refused: 503, no replica is ready, or too many requests are in flight.
        """
        ready = [r for r in self.replicas if r.state is ReplicaState.READY and r not in besides]
        if not ready:
            raise Refused(503, "the engine is starting; try again")
        if self.in_flight + num_answers > self.max_in_flight:
            raise Refused(
                503,
                f"{self.in_flight} requests are in flight, and {num_answers} more would be over "
                f"serve.max_requests_under_way={self.max_in_flight}; try again",
            )
        return min(ready, key=lambda replica: replica.in_flight)

    async def supervise(self, when_ready: Callable[[], None]) -> None:
        """Keep the replicas running until cancelled; report those that are given up.

        Args:
            when_ready: called once, when all are ready for the first time.

        Raises:
            RequestError, RunFailed: the error of a replica that fails before all were ready, or of
                the last replica.
        """
        tasks = {asyncio.create_task(r.supervise()): r for r in self.replicas}
        told = False
        # A replica's task ends only with an error, when the replica is given up.
        try:
            while True:
                if not told and self.num_ready == len(self.replicas):
                    told = True
                    when_ready()
                done, _ = await asyncio.wait(
                    tasks, timeout=None if told else 0.05, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    tasks.pop(task)
                    self._lost(task, is_last=not tasks, is_early=not told)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _lost(self, task: asyncio.Task[None], *, is_last: bool, is_early: bool) -> None:
        try:
            task.result()
        except (RequestError, RunFailed) as error:
            if is_last or is_early:
                raise
            self._report(f"{error}; the other replicas go on")
