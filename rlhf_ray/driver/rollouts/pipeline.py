"""The rollout pipeline: prompts in, batches of scored groups out.

At most `max_staleness + 1` batches are in flight. The least loaded engine samples each group, and
rewards score it as soon as it is sampled. Batches are handed out in the order of the prompts, so
that no token is staler than the bound. The driver holds references and scalars only.

`batch_builder.py` decides which groups make up a batch; `in_flight.py` keeps the requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.algorithms.equality import BFLOAT16_ULP
from rlhf_ray.calls import CallWaiter
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.driver.roles import PromptSource, RewardRole, SamplingEngines
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.rollouts.batch_builder import BatchBuilder, ScoredGroup
from rlhf_ray.driver.rollouts.early_scores import NO_EARLY_SCORES, EarlyScores, NoEarlyScores
from rlhf_ray.driver.rollouts.engine_metrics import engine_metrics
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.in_flight import InFlight, ScoredPrompt
from rlhf_ray.driver.rollouts.prompt_queue import PromptQueue
from rlhf_ray.driver.rollouts.replay import ReplayBuffer
from rlhf_ray.driver.rollouts.restored import RestoredRollouts, Scored, plain_batch
from rlhf_ray.records import GroupSummary
from rlhf_ray.records.plain_prompts import plain_prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineSettings:
    """Settings of the pipeline; see the configuration keys of the same names."""

    num_steps: int
    prompts_per_step: int
    samples_per_prompt: int
    num_greedy: int = 0
    max_staleness: int
    generate_timeout_s: float
    rollout_selection: RolloutSelectionConfig = field(default_factory=RolloutSelectionConfig)
    reward_tolerance: float = BFLOAT16_ULP

    @property
    def greedy(self) -> tuple[int, ...]:
        """Sample indices of the greedy answers."""
        return tuple(range(self.samples_per_prompt, self.samples_per_prompt + self.num_greedy))

    @property
    def is_reproducible(self) -> bool:
        """Whether a batch is the same in every run, whatever the timing."""
        return self.max_staleness == 0 and self.rollout_selection.oversample == 1


class RolloutPipeline:
    """See the module. One instance per run; the loop calls `next_batch` and `begin` in turn."""

    def __init__(
        self,
        *,
        prompts: PromptSource,
        generators: SamplingEngines,
        rewards: RewardRole,
        waiter: CallWaiter,
        failure_budget: FailureBudget,
        settings: PipelineSettings,
        early: EarlyScores | NoEarlyScores = NO_EARLY_SCORES,
    ) -> None:
        self._queue = PromptQueue(
            prompts, max_cancellations=settings.rollout_selection.max_cancellations
        )
        self._in_flight = InFlight(
            generators=generators,
            rewards=rewards,
            waiter=waiter,
            samples_per_prompt=settings.samples_per_prompt,
            greedy=settings.greedy,
            timeout_s=settings.generate_timeout_s,
            on_scored=self._score_early,
        )
        self._budget = failure_budget
        self._settings = settings
        self._early = early
        self._replay = ReplayBuffer(
            settings.rollout_selection, reward_tolerance=settings.reward_tolerance
        )
        self._batches: dict[int, BatchBuilder] = {}
        self._restored = RestoredRollouts()
        self._next_batch = 0

    def begin(self, step: int) -> None:
        """Start every batch that may be in flight while step `step` is the next to train."""
        self._next_batch = max(self._next_batch, step)
        last = min(step + self._settings.max_staleness, self._settings.num_steps - 1)
        while self._next_batch <= last:
            self._start_batch(self._next_batch)
            self._next_batch += 1

    def next_batch(self, step: int) -> Batch:
        """Wait for the batch of this step.

        Raises:
            RunFailed: a worker failed or was late, too many groups failed, or a token is staler
                than the bound.
        """
        self.begin(step)
        builder = self._batches[step]
        started = time.monotonic()
        generated, halted_s = started, self._in_flight.halted_s
        while not builder.is_complete(self._in_flight.num_of(step)):
            limit_s = self._settings.generate_timeout_s + self._in_flight.halted_s - halted_s
            left_s = started + limit_s - time.monotonic()
            # Failures and timeouts name this phase: "generate" until the last sample is there.
            was_generating = self._in_flight.is_generating(step)
            phase = "generate" if was_generating else "score"
            # Prompts of later batches are scored on the way; each goes to its own builder.
            for scored in self._in_flight.wait(phase, max(0.0, left_s)):
                self._take_in(scored)
            # The wait in which the last sample came back was still for the engines.
            if was_generating:
                generated = time.monotonic()
        finished = time.monotonic()
        del self._batches[step]
        batch = self._hand_out(builder, step, generated - started, finished - generated)
        self._check_staleness(batch.fresh_summaries, step)
        return batch

    def score_sampled(self) -> None:
        """Send to rewards and reference what is there for later batches; wait for nothing.

        For the time in which the driver waits for the training of another batch.

        Raises:
            RunFailed: an engine or a reward worker died or failed.
        """
        self._in_flight.advance("generate")

    def take_finished(self) -> None:
        """Take in what is sampled and scored by now, so that a checkpoint has it; wait for nothing.

        Raises:
            RunFailed: an engine or a reward worker died or failed, or too many groups failed.
        """
        if not self._batches:
            return
        self._in_flight.advance("generate")
        for scored in self._in_flight.take_scored():
            self._take_in(scored)

    def waiting_groups(self) -> list[Scored]:
        """The groups that `state_dict` names: of later batches, then those kept for replay."""
        waiting = [
            (scored.group, scored.summary)
            for index in sorted(self._batches)
            for scored in self._batches[index].groups
        ]
        return [*waiting, *self._replay.groups]

    def state_dict(self) -> dict[str, Any]:
        """The position in the prompts, those taken but not trained on, and which are scored."""
        batches = [self._batches[index] for index in sorted(self._batches)]
        return {
            **self._queue.state_dict(),
            "pending": [plain_prompts(builder.prompts) for builder in batches],
            "waiting": [plain_batch(builder) for builder in batches],
            "replay": [summary.prompt_id for _, summary in self._replay.groups],
            "failure_budget": self._budget.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. Prompts that were in flight are sent again, in their batches,
        but for those whose groups `restore_groups` brings back."""
        self._queue.load_state_dict(state)
        self._budget.load_state_dict(state["failure_budget"])
        self._restored = RestoredRollouts(state)

    @property
    def num_to_restore(self) -> int:
        """Number of prompts that were in flight in the state that was loaded."""
        return self._restored.num_prompts

    def restore_groups(self, groups: Sequence[Scored], *, step: int) -> int:
        """Take over the groups of `waiting_groups`, after `load_state_dict` and before `begin`.

        Args:
            groups: with the summaries of all samples, greedy ones included.
            step: the next step to train.

        Returns:
            the number of groups that this run's `max_staleness` does not allow.

        Raises:
            ValueError: these are not the groups that the state names.
        """
        settings = self._settings
        too_old, replay = self._restored.take(
            [(group, summary.of_first(settings.samples_per_prompt)) for group, summary in groups],
            oldest=step - settings.max_staleness,
            keeps_replaced=settings.rollout_selection.dynamic,
        )
        self._replay.restore(replay)
        return too_old

    def _start_batch(self, index: int) -> None:
        settings = self._settings
        # After a resume, the first batches start with the prompts that were in flight before.
        restored = self._restored.next_batch()
        wanted = settings.rollout_selection.prompts_to_start(settings.prompts_per_step)
        new = self._queue.take(max(0, wanted - len(restored.prompts)))
        prompts = [*restored.prompts, *new]
        builder = self._batches[index] = BatchBuilder(
            prompts,
            size=settings.prompts_per_step,
            selection=settings.rollout_selection,
            reward_tolerance=settings.reward_tolerance,
            urgent=[p.stream_index for p in prompts if self._queue.is_urgent(p)],
        )
        self._early.begin(index, prompts)
        builder.restore(
            restored.groups, failures=restored.failures, num_dropped=restored.num_dropped
        )
        for scored in restored.groups:
            self._early.add(index, scored.prompt, scored.group, scored.summary)
        self._in_flight.start(index, [*restored.to_send, *new])

    def _score_early(self, scored: ScoredPrompt) -> None:
        if not scored.summary.failures:
            self._early.add(scored.batch, scored.prompt, scored.group, scored.summary)

    def _take_in(self, scored: ScoredPrompt) -> None:
        builder = self._batches[scored.batch]
        self._budget.record(scored.summary.failures)
        if scored.summary.failures:
            (instead,) = self._queue.take(1)
            builder.drop(scored.prompt, scored.summary.failures, instead)
            self._early.replace(scored.batch, scored.prompt, instead)
            self._in_flight.send(scored.batch, instead)
        else:
            builder.add(
                ScoredGroup(prompt=scored.prompt, group=scored.group, summary=scored.summary)
            )
        if self._settings.rollout_selection.dynamic:
            self._replace_uniform(scored.batch, builder)

    def _replace_uniform(self, batch: int, builder: BatchBuilder) -> None:
        """Dynamic sampling: start new prompts in place of groups without variance, if allowed."""
        num_in_flight = self._in_flight.num_of(batch)
        if num_in_flight and self._settings.is_reproducible:
            # Replace in rounds, when the whole batch is scored: the order in which groups come
            # back must not decide which requests share an engine step.
            return
        prompts = self._queue.take(builder.num_to_replace(num_in_flight))
        if prompts:
            builder.replace(prompts)
            self._in_flight.start(batch, prompts)

    def _hand_out(
        self, builder: BatchBuilder, step: int, generate_s: float, score_s: float
    ) -> Batch:
        # Over-sampling leaves prompts in flight, and scored groups that are not needed. Neither is
        # trained on, so their prompts go back to the queue.
        cancelled = self._in_flight.cancel(step)
        selected = builder.select()
        self._queue.give_back([*cancelled, *(scored.prompt for scored in selected.spare)])
        self._queue.settle(selected.settled)
        # Take before put: a group is not replayed in the step that it was sampled for.
        replayed = self._replay.take(step)
        fresh = [(scored.group, scored.summary) for scored in selected.kept]
        self._replay.put(fresh)
        groups = [*fresh, *replayed]
        return Batch(
            groups=tuple(group for group, _ in groups),
            summaries=tuple(summary for _, summary in groups),
            failures=tuple(builder.failures),
            num_dropped=builder.num_dropped,
            generate_s=generate_s,
            score_s=score_s,
            num_replayed=len(replayed),
            engine_metrics=engine_metrics(self._in_flight.engine_statistics()),
            selection_metrics={
                **builder.metrics(selected, num_cancelled=len(cancelled)),
                **self._replay.metrics(replayed, version=step),
            },
        )

    def _check_staleness(self, summaries: Sequence[GroupSummary], version: int) -> None:
        for summary in summaries:
            staleness = version - summary.oldest_version
            # A group without a sampled token has no version: -1.
            if summary.oldest_version >= 0 and staleness > self._settings.max_staleness:
                raise RunFailed(
                    f"prompt {summary.prompt_id} has tokens of version {summary.oldest_version}, "
                    f"{staleness} older than the newest ({version}), and max_staleness is "
                    f"{self._settings.max_staleness}: the engine's versions are wrong"
                )
