"""Prompts in flight: sampled by an engine, failed samples retried by another, then scored.

A prompt whose engine is lost goes to another one as if it had not been sent: its seeds are its own,
so that its samples are the same. While no engine serves, prompts wait here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.batching.balance import Loads
from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import RewardRole, SamplingEngines
from rlhf_ray.losses import Lost, answers_of_rest
from rlhf_ray.records import GroupSummary, Prompt, SampleFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredPrompt:
    """A prompt that is sampled and scored, with a reference to its group."""

    batch: int
    prompt: Prompt
    group: Any
    summary: GroupSummary


@dataclass(kw_only=True, slots=True)
class _Request:
    """One prompt in flight.

    Attributes:
        worker: engine that samples it; the reward worker once `scoring` is set.
        samples: indices of the samples that the engine was asked for.
        parts: references to the groups that engines have returned so far.
        retried: whether failed samples were sent a second time.
    """

    batch: int
    prompt: Prompt
    samples: tuple[int, ...]
    worker: int = 0
    parts: list[Any] = field(default_factory=list)
    retried: bool = False
    scoring: bool = False


class InFlight:
    """Sends prompts to the least loaded engine and reward worker, and waits for them.

    Args:
        greedy: sample indices of the greedy answers, which come after all others.
        timeout_s: deadline of a wait that is not for samples or scores.
        on_scored: is told of every prompt as soon as it is scored, failed ones included.

    Attributes:
        halted_s: time so far in which no engine served, which is no request's fault.
    """

    def __init__(
        self,
        *,
        generators: SamplingEngines,
        rewards: RewardRole,
        waiter: CallWaiter,
        samples_per_prompt: int,
        greedy: tuple[int, ...],
        timeout_s: float,
        on_scored: Callable[[ScoredPrompt], None] | None = None,
    ) -> None:
        self._generators = generators
        self._rewards = rewards
        self._waiter = waiter
        self._samples_per_prompt = samples_per_prompt
        self._greedy = greedy
        self._timeout_s = timeout_s
        self._on_scored = on_scored
        self.halted_s = 0.0
        # The load of an engine is its number of samples, of a reward worker its number of groups.
        self._engine_load = Loads(len(generators.names))
        self._worker_load = Loads(len(rewards.names))
        # A request has exactly one call at a time: sampling, its retry, or scoring.
        self._requests: dict[Call, _Request] = {}
        # Without a call: their engine was lost, and no other one serves yet.
        self._waiting: list[_Request] = []
        self._calls = waiter.pending()
        # Scored by `advance`, and not handed out yet: still in flight for everyone else.
        self._scored: list[ScoredPrompt] = []
        # Requests by batch: with thousands in flight no question may scan them all.
        self._num_requests: Counter[int] = Counter()
        self._num_sampling: Counter[int] = Counter()

    def start(self, batch: int, prompts: Sequence[Prompt]) -> None:
        """Send several prompts; if the engines are idle, all prompts start together."""
        if not prompts:
            return
        # What an engine computes depends in its last bits on which requests share a step. An idle
        # engine waits until it has all its requests, so that a synchronous batch is the same in
        # every run. Engines at work cannot be made reproducible this way.
        self._ensure_serving()
        self._send_waiting()
        requests = [self._request(batch, prompt) for prompt in prompts]
        if self._requests:
            for request in requests:
                self._generate(request)
            return
        # Every request says how many its engine is to wait for.
        for request in requests:
            self._assign(request)
        # Nothing else is in flight, so the loads are the numbers of requests.
        numbers = list(self._engine_load)
        for request in requests:
            self._ask(request, together=numbers[request.worker])

    def send(self, batch: int, prompt: Prompt) -> None:
        """Send one prompt."""
        self._generate(self._request(batch, prompt))

    def _request(self, batch: int, prompt: Prompt) -> _Request:
        self._num_requests[batch] += 1
        self._num_sampling[batch] += 1
        return _Request(
            batch=batch,
            prompt=prompt,
            samples=(*range(self._samples_per_prompt), *self._greedy),
        )

    def wait(self, phase: str, timeout_s: float) -> Iterator[ScoredPrompt]:
        """Wait until a call is done; yield the prompts that are scored then, maybe none.

        Raises:
            RunFailed: a worker died or failed, or no call was done in time.
        """
        if self._waiting:
            self._ensure_serving()
            self._send_waiting()
        if not self._scored:
            self._advance(self._calls.take_done(phase=phase, timeout_s=timeout_s))
        yield from self.take_scored()

    def take_scored(self) -> Iterator[ScoredPrompt]:
        """Yield the prompts that `advance` found scored; waits for nothing."""
        taken, self._scored = self._scored, []
        for scored in taken:
            self._num_requests[scored.batch] -= 1
            yield scored

    def advance(self, phase: str) -> None:
        """Send what engines have sampled by now to the rewards; wait for nothing.

        For the time in which the driver waits for something else. The prompts that are scored then
        come out of the next `wait` or `take_scored`.

        Raises:
            RunFailed: a worker died or failed.
        """
        self._send_waiting()
        if self._requests:
            self._advance(self._calls.take_ready(phase=phase))

    def num_of(self, batch: int) -> int:
        """Number of prompts of this batch that are in flight."""
        return self._num_requests[batch]

    def is_generating(self, batch: int) -> bool:
        """Whether an engine still samples for this batch."""
        return self._num_sampling[batch] > 0

    def cancel(self, batch: int) -> list[Prompt]:
        """Give up the prompts of this batch that are in flight; return them.

        Engines have stopped sampling them when this returns. A score that is being computed is
        not waited for.
        """
        if not self._num_requests[batch]:
            return []
        mine = {call: request for call, request in self._requests.items() if request.batch == batch}
        sampling: dict[Call, _Request] = {}
        by_engine: dict[int, list[str]] = {}
        for call, request in mine.items():
            if not request.scoring:
                sampling[call] = request
                by_engine.setdefault(request.worker, []).append(request.prompt.prompt_id)
        calls = [self._generators.abort(engine, ids) for engine, ids in sorted(by_engine.items())]
        # Wait for the requests too. Ray may run an `abort` before a request that was sent earlier:
        # that request samples to its end, and would share the engine with the next batch.
        self._wait([*calls, *sampling])
        for call, request in mine.items():
            self._calls.discard(call)
            self._finish(call, request)
        waiting = [request for request in self._waiting if request.batch == batch]
        self._waiting = [request for request in self._waiting if request.batch != batch]
        scored = [scored.prompt for scored in self._scored if scored.batch == batch]
        self._scored = [scored for scored in self._scored if scored.batch != batch]
        del self._num_requests[batch]
        self._num_sampling.pop(batch, None)
        given_up = [request.prompt for request in (*mine.values(), *waiting)]
        return [*given_up, *scored]

    def engine_statistics(self) -> list[dict[str, float]]:
        """Statistics of every engine since the last call."""
        return self._wait(self._generators.statistics())

    def _wait(self, calls: Sequence[Call]) -> list[Any]:
        """Answers of the engines that are not lost meanwhile."""
        answers = answers_of_rest(self._waiter, calls, phase="generate", timeout_s=self._timeout_s)
        return [value for _, value in answers]

    def _generate(self, request: _Request, *, other_than: int | None = None) -> None:
        """Send a request to the least loaded engine, or let it wait until there is one."""
        if not self._generators.serving:
            self._waiting.append(request)
            return
        self._assign(request, other_than=other_than)
        self._ask(request)

    def _assign(self, request: _Request, *, other_than: int | None = None) -> None:
        """Choose the least loaded engine; one must serve."""
        self._engine_load.restrict(self._generators.serving)
        request.worker = self._engine_load.least(other_than)
        self._engine_load.add(request.worker, len(request.samples))

    def _ask(self, request: _Request, *, together: int = 0) -> None:
        worker, samples = request.worker, request.samples
        call = self._generators.generate(worker, request.prompt, samples, together=together)
        self._follow(call, request)

    def _ensure_serving(self) -> None:
        started = time.monotonic()
        self._generators.ensure_serving()
        self.halted_s += time.monotonic() - started

    def _send_waiting(self) -> None:
        if self._waiting and self._generators.serving:
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self._generate(request)

    def _follow(self, call: Call, request: _Request) -> None:
        self._requests[call] = request
        self._calls.add(call)

    def _finish(self, call: Call, request: _Request) -> None:
        """Note that the call of a request is done, or given up."""
        del self._requests[call]
        if request.scoring:
            self._worker_load.add(request.worker, -1)
        else:
            self._engine_load.add(request.worker, -len(request.samples))

    def _advance(self, done: Sequence[tuple[Call, Any]]) -> None:
        """Take every request whose call is done a stage further."""
        for call, signal in done:
            request = self._requests[call]
            self._finish(call, request)
            if isinstance(signal, Lost):
                # Whatever it had sampled of this request is lost with it: all samples again.
                assert not request.scoring, "no reward worker is replaced"
                self._generators.issued_again(signal)
                self._generate(request)
            elif not request.scoring:
                self._score_or_retry(request, call.payload, signal)
            else:
                self._take_scored(request, call.payload, signal)

    def _take_scored(self, request: _Request, group: Any, summary: GroupSummary) -> None:
        # Greedy answers come last in a group. They are a baseline and no rollouts, so the summary
        # that the driver works with must not count them.
        scored = ScoredPrompt(
            batch=request.batch,
            prompt=request.prompt,
            group=group,
            summary=summary.of_first(self._samples_per_prompt),
        )
        self._scored.append(scored)
        if self._on_scored is not None:
            self._on_scored(scored)

    def _score_or_retry(
        self, request: _Request, group: Any, failures: Sequence[SampleFailure]
    ) -> None:
        request.parts.append(group)
        if failures and not request.retried:
            # Only the failed samples, and on another engine if there is one: the failure may be
            # the engine's. The reward worker merges the parts into one group.
            request.retried = True
            request.samples = tuple(failure.sample_index for failure in failures)
            self._generate(request, other_than=request.worker)
            return
        # Samples that failed twice go to scoring too: the summary then names their failures, and
        # the pipeline replaces the prompt.
        self._num_sampling[request.batch] -= 1
        request.scoring = True
        request.worker = self._worker_load.least()
        self._worker_load.add(request.worker, 1)
        self._follow(self._rewards.score(request.worker, request.parts), request)
