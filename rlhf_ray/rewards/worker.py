"""The reward worker: merges groups, runs the functions on every sample, drops failed samples."""

from __future__ import annotations

from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.config.reward_entries import read_functions
from rlhf_ray.records import FailureKind, GroupSummary, Prompt, RolloutGroup, SampleFailure
from rlhf_ray.rewards.answers import Answer, fits_float32, outcome, step_values
from rlhf_ray.rewards.functions.containment import containment_of
from rlhf_ray.rewards.functions.process import FunctionProcess, Item
from rlhf_ray.rewards.merge import drop_failed, merge_parts, with_rewards
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.rewards.protocol import RewardSample


class RewardWorker:
    """Scores groups with the functions of `reward.functions`, one group at a time.

    Without functions (scorers follow then) it merges the parts of groups, with rewards of 0.

    The functions run in a child process, with a time limit each; this class only talks to it.

    Raises:
        RequestError: an entry of `reward.functions` is wrong.
    """

    def __init__(self, reward: RewardConfig) -> None:
        self._functions = read_functions(reward.functions, reward.scorers)
        self._weights = {entry.name: entry.weight for entry in self._functions}
        self._retry = reward.on_failure == "retry"
        self._process = FunctionProcess(
            self._functions, containment_of(reward), timeout_s=reward.timeout_s
        )

    def start(self) -> None:
        """Start the child process and load the functions.

        Raises:
            RequestError: a function cannot be loaded.
            RuntimeError: the process died or did not start in time.
        """
        if self._functions:
            self._process.start()

    def score(self, *parts: RolloutGroup) -> tuple[RolloutGroup, GroupSummary]:
        """Merge the parts of one prompt's group and score every sample.

        Returns:
            The group with rewards and its summary. Failed samples are dropped from the group and
            listed in its `failures`.

        Raises:
            ValueError: the parts do not belong together (see `merge_parts`).
            RuntimeError: the child process was lost and could not be started again.
        """
        group = merge_parts(*parts)
        outcomes = self._run_functions(_samples(group))
        scored: list[list[Answer]] = []
        failures: list[SampleFailure] = []
        for position, index in enumerate(group.sample_indices):
            row = outcomes[position]
            answers: list[Answer] = [
                answer for answer in row if not isinstance(answer, ItemFailure)
            ]
            failure = self._failure(row, answers)
            if failure is None:
                scored.append(answers)
                continue
            failures.append(
                SampleFailure(
                    prompt_id=group.prompt.prompt_id,
                    sample_index=index,
                    kind=failure.kind,
                    message=failure.message,
                )
            )
        columns = list(zip(*scored, strict=True)) if scored else [()] * len(self._weights)
        by_name = dict(zip(self._weights, columns, strict=True))
        group = with_rewards(drop_failed(group, failures), by_name, self._weights)
        return group, group.summary()

    def close(self) -> None:
        """End the child process. Safe to call twice."""
        self._process.close()

    def _run_functions(self, samples: list[RewardSample]) -> list[list[Answer | ItemFailure]]:
        """One row per sample, one outcome per function; retries failures if so configured."""
        items: list[Item] = [
            (sample, function)
            for sample in range(len(samples))
            for function in range(len(self._functions))
        ]
        outcomes = dict(zip(items, self._process.run(samples, items), strict=True))
        failed = [item for item in items if isinstance(outcomes[item], ItemFailure)]
        if failed and self._retry:
            outcomes.update(zip(failed, self._process.run(samples, failed), strict=True))
        return [
            [outcomes[sample, function] for function in range(len(self._functions))]
            for sample in range(len(samples))
        ]

    def _failure(
        self, row: list[Answer | ItemFailure], answers: list[Answer]
    ) -> ItemFailure | None:
        """Failure of one sample: its first failed part, or a sum that is not finite."""
        for name, item in zip(self._weights, row, strict=True):
            if isinstance(item, ItemFailure):
                return ItemFailure(kind=item.kind, message=f"reward {name!r}: {item.message}")
        # Summed over the weighted steps, not over the outcomes: a weighted step that overflows to
        # infinity must not be hidden because the unweighted steps cancel.
        values = [
            weight * value
            for weight, answer in zip(self._weights.values(), answers, strict=True)
            for value in step_values(answer)
        ]
        total = sum(values)
        if all(map(fits_float32, (total, *values))):
            return None
        return ItemFailure(
            kind=FailureKind.REWARD_NOT_FINITE,
            message=f"the weighted sum of the parts {[outcome(a) for a in answers]} is {total}"
            f"{'' if fits_float32(total) else ', not a finite number of float32'}",
        )


def reward_sample(prompt: Prompt, *, index: int, response: str, finish_reason: str) -> RewardSample:
    """A sample as the functions see it."""
    return RewardSample(
        prompt_id=prompt.prompt_id,
        sample_index=index,
        prompt=prompt.text,
        response=response,
        answer=prompt.answer,
        source=prompt.source,
        columns=prompt.columns,
        finish_reason=finish_reason,
    )


def _samples(group: RolloutGroup) -> list[RewardSample]:
    return [
        reward_sample(group.prompt, index=index, response=response, finish_reason=finish_reason)
        for index, response, finish_reason in zip(
            group.sample_indices, group.responses, group.finish_reasons, strict=True
        )
    ]
