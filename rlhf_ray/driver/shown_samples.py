"""Answers of every step on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.roles import BuilderRole
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.prompt_choice import detailed_places


class NoShownSamples:
    """Null object of a run that shows none."""

    def show(self, step: int, batch: Batch) -> None: ...


class ShownSamples:
    """Shows the best and the worst answer to a few prompts: the same prompts when they come again.

    The driver holds no texts, so that the builder is asked for these few.

    Args:
        num_samples: answers to show; two of every prompt.
        say: shows a text.
    """

    def __init__(
        self,
        builder: BuilderRole,
        waiter: CallWaiter,
        say: Callable[[str], None],
        *,
        num_samples: int,
        timeout_s: float,
    ) -> None:
        self._builder = builder
        self._waiter = waiter
        self._say = say
        self._num_samples = num_samples
        self._timeout_s = timeout_s

    def show(self, step: int, batch: Batch) -> None:
        """Show answers of a step.

        Raises:
            RunFailed: the builder failed or was late.
        """
        places = detailed_places([summary.prompt_rank for summary in batch.fresh_summaries])
        groups = [batch.fresh_groups[place] for place in places[: (self._num_samples + 1) // 2]]
        asked = [self._builder.sample_texts(groups)]
        (texts,) = self._waiter.results(asked, phase="build", timeout_s=self._timeout_s)
        shown = texts[: self._num_samples]
        self._say("\n".join([f"answers of step {step}:", *shown]))
