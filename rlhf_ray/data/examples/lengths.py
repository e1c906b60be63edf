"""Limit on the length of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples.sets import T
from rlhf_ray.data.rejects import INVALID, Rejects
from rlhf_ray.data.rows import DataError, Row
from rlhf_ray.records.supervised import LabelledTokens

TOO_LONG = "too long"
NOTHING_LEFT = "cut down to nothing to learn"


@dataclass(slots=True)
class LengthLimit:
    """Cuts or skips examples longer than `examples.max_tokens`, and counts the cuts."""

    examples: ExamplesConfig
    rejects: Rejects
    num_cut: int = 0

    def fit(
        self,
        row: Row,
        samples: Sequence[LabelledTokens],
        build: Callable[[tuple[LabelledTokens, ...]], T],
    ) -> T | None:
        """Build the example of these samples, cut if configured; None if it is skipped.

        A cut removes tokens from the end. An example without anything left to learn (no token of
        an answer, or the same tokens in two answers of a ranking) is skipped.

        Raises:
            DataError: the example is too long or invalid, and the configuration ends the run.
        """
        limit = self.examples.max_tokens
        longest = max(len(sample.token_ids) for sample in samples)
        if longest <= limit:
            try:
                return build(tuple(samples))
            except ValueError as error:
                self.rejects.bad_row(INVALID, row.where, str(error))
                return None
        message = f"{row.where}: has {longest} tokens"
        if self.examples.on_long == "error":
            raise DataError(
                f"{message}, and examples.max_tokens is {limit} (what the model reads, where that "
                "is less). Raise it, cut such rows with examples.on_long=cut, or leave them out "
                "with examples.on_long=skip"
            )
        if self.examples.on_long == "skip":
            self.rejects.count(TOO_LONG, f"{message}, limit {limit}")
            return None
        try:
            example = build(tuple(_cut(sample, limit) for sample in samples))
        except ValueError as error:
            self.rejects.count(NOTHING_LEFT, f"{message}, cut to {limit}: {error}")
            return None
        self.num_cut += 1
        return example


def _cut(sample: LabelledTokens, limit: int) -> LabelledTokens:
    # A copy: a slice would keep the whole of a long text in memory.
    return LabelledTokens(
        token_ids=sample.token_ids[:limit].clone(), loss_mask=sample.loss_mask[:limit].clone()
    )
