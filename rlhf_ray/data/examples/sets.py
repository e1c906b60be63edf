"""Set of the examples of a run: training, held-out and left-out examples."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlhf_ray.data.rejects import Skipped, skipped_lines
from rlhf_ray.data.tokens.turn_ends import TurnEnd
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens

# Below this a share has a standard error of up to 0.09.
FEW_ROWS = 30
# Above this an evaluation is longer than its answer is worth, and no longer small in memory.
MANY_HELD_OUT = 50_000_000
T = TypeVar("T", LabelledTokens, Ranking, Feedback)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSet(Generic[T]):
    """All examples of a run. They may be on disk: whoever walks through them reads them again.

    Attributes:
        kind: kind of examples, in the plural ("demonstrations"), for messages.
        train: in the order of the source.
        held_out: never trained on; may be empty. If they are a share of the same source, they
            share no prompt with `train`.
        num_cut: examples of both that were cut to the maximum length.
        num_unended: examples of both with an answer after which the template writes no special
            token, before any cut. They do not teach the model to stop.
        skipped: rows of both sources that are left out, by reason.
        notes: lines about rows that are learnt otherwise than they say, and of special tokens.
        vocabulary_size: of the tokenizer; every token id is below it.
        fingerprint: hash of the tokens, masks and labels of both, in order.
        already: words on texts that had the tokens of their beginning or end already.
        turn_ends: tokens with which the learnt parts of `train` end, the most frequent first.
    """

    kind: str
    train: Sequence[T]
    held_out: Sequence[T]
    num_cut: int
    num_unended: int
    skipped: tuple[Skipped, ...]
    vocabulary_size: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    turn_ends: tuple[TurnEnd, ...] = ()
    already: tuple[str, ...] = ()

    def describe(self) -> str:
        """Lines for the screen: number and lengths of examples, and rows left out."""
        held_out = _Sizes.of(self.held_out)
        lines = [f"{self.kind} to learn from: {_Sizes.of(self.train)}", f"held out: {held_out}"]
        if held_out.num_tokens > MANY_HELD_OUT:
            lines.append(
                f"many held-out tokens: {held_out.num_tokens:,} are in the driver's memory "
                f"({held_out.num_tokens * 9 / 1e9:.2g} GB), and every evaluation scores all of "
                "them; hold out fewer rows (examples.eval_share, examples.eval_path)"
            )
        if 0 < len(self.held_out) < FEW_ROWS:
            lines.append(few_rows(len(self.held_out)))
        if self.num_cut:
            lines.append(f"cut to examples.max_tokens: {self.num_cut}")
        if self.num_unended:
            lines.append(
                f"with an answer that no special token ends: {self.num_unended}; from these the "
                "model does not learn when to stop"
            )
        return "\n".join([*lines, *self.already, *self.notes, *skipped_lines(self.skipped)])


def few_rows(count: int) -> str:
    """Warning about metrics of few held-out rows."""
    return (
        f"few held-out rows: a share of {count}, such as an accuracy, changes by "
        f"{1 / count:.0%} with a single row; hold out more (examples.eval_share, "
        "examples.eval_path)"
    )


def samples_of(example: LabelledTokens | Ranking | Feedback) -> tuple[LabelledTokens, ...]:
    """The token sequences of an example."""
    if isinstance(example, Ranking):
        return example.answers
    return (example.sample,) if isinstance(example, Feedback) else (example,)


def fingerprint_of(train: Sequence[T], held_out: Sequence[T]) -> str:
    """Hash of both, in order, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in (train, held_out):
        digest.update(f"{len(part)} examples".encode())
        for example in part:
            digest.update(json.dumps(list(_content(example))).encode())
    return digest.hexdigest()[:16]


def _content(example: LabelledTokens | Ranking | Feedback) -> Iterator[Any]:
    for sample in samples_of(example):
        yield sample.token_ids.tolist()
        yield sample.loss_mask.nonzero().flatten().tolist()
    if isinstance(example, Ranking):
        yield example.margin
    if isinstance(example, Feedback):
        yield example.is_good


@dataclass(slots=True)
class _Sizes:
    """Numbers and lengths of the samples of some examples."""

    num_examples: int
    counted: str = "predicted"
    num_samples: int = 0
    num_tokens: int = 0
    num_predicted: int = 0
    shortest: int = sys.maxsize
    longest: int = 0

    @classmethod
    def of(cls, examples: Sequence[LabelledTokens | Ranking | Feedback]) -> _Sizes:
        """Walk through all examples once."""
        # Of compared answers it depends on the stage: a reward model predicts no token.
        is_text = all(isinstance(example, LabelledTokens) for example in examples)
        counted = "predicted" if is_text else "in answers"
        sizes = cls(num_examples=len(examples), counted=counted)
        for example in examples:
            for sample in samples_of(example):
                length = len(sample.token_ids)
                sizes.num_samples += 1
                sizes.num_tokens += length
                sizes.num_predicted += int(sample.loss_mask.sum())
                sizes.shortest = min(sizes.shortest, length)
                sizes.longest = max(sizes.longest, length)
        return sizes

    def __str__(self) -> str:
        if not self.num_samples:
            return "none"
        several = self.num_samples != self.num_examples
        answers = f" with {self.num_samples} answers" if several else ""
        return (
            f"{self.num_examples}{answers}, {self.shortest} to {self.longest} tokens each "
            f"({self.num_tokens / self.num_samples:.0f} on average), {self.num_predicted} of "
            f"{self.num_tokens} {self.counted}"
        )
