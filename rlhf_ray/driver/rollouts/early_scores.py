"""The reference scores pieces of a batch while other prompts of it are still sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.driver.roles import TokenScorer
from rlhf_ray.records import GroupSummary, Prompt


class NoEarlyScores:
    """Null object of a run whose reference scores whole batches."""

    def begin(self, batch: int, prompts: Sequence[Prompt]) -> None: ...

    def replace(self, batch: int, prompt: Prompt, instead: Prompt) -> None: ...

    def add(self, batch: int, prompt: Prompt, group: Any, summary: GroupSummary) -> None: ...


@dataclass(slots=True)
class _Piece:
    """Prompts that are scored together.

    Attributes:
        num_missing: groups that are not there yet.
        groups: place in the prompt stream, reference and number of tokens of those that are.
    """

    num_missing: int
    groups: list[tuple[int, Any, int]] = field(default_factory=list)


class EarlyScores:
    """Asks the reference as soon as all groups of a piece are there.

    A piece is some neighbours in the order of the prompts, and not those that came first: which
    samples share a forward pass decides the last bits of their log-probabilities.

    Args:
        prompts_at_once: prompts of a piece; the last one of a batch may have fewer.
    """

    def __init__(self, reference: TokenScorer, *, prompts_at_once: int) -> None:
        self._reference = reference
        self._prompts_at_once = prompts_at_once
        # By batch: the piece of every prompt by its place in the stream, and the calls so far.
        self._pieces: dict[int, dict[int, _Piece]] = {}
        self._calls: dict[int, list[Call]] = {}
        # The groups that were handed out last, and their calls: a step may be done again.
        self._last: tuple[Sequence[Any], list[Call]] = ((), [])

    def begin(self, batch: int, prompts: Sequence[Prompt]) -> None:
        """Divide the prompts of a batch into pieces."""
        self._calls[batch] = []
        pieces = self._pieces[batch] = {}
        for start in range(0, len(prompts), self._prompts_at_once):
            some = prompts[start : start + self._prompts_at_once]
            piece = _Piece(num_missing=len(some))
            pieces.update((prompt.stream_index, piece) for prompt in some)

    def replace(self, batch: int, prompt: Prompt, instead: Prompt) -> None:
        """Put a prompt in the place of one whose group failed."""
        pieces = self._pieces[batch]
        pieces[instead.stream_index] = pieces.pop(prompt.stream_index)

    def add(self, batch: int, prompt: Prompt, group: Any, summary: GroupSummary) -> None:
        """Take in a scored group; send its piece to the reference if it is the last one."""
        piece = self._pieces[batch][prompt.stream_index]
        piece.groups.append((prompt.stream_index, group, sum(summary.sample_lengths)))
        piece.num_missing -= 1
        if piece.num_missing:
            return
        ordered = sorted(piece.groups, key=lambda own: own[0])
        groups, num_tokens = [own[1] for own in ordered], [own[2] for own in ordered]
        self._calls[batch] += self._reference.score(groups, num_tokens)

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """The calls for the oldest batch, which is complete; a `TokenScorer`."""
        del num_tokens
        if groups is self._last[0]:
            return list(self._last[1])
        batch = min(self._calls)
        pieces = {id(piece): piece for piece in self._pieces.pop(batch).values()}.values()
        asked = {id(group) for piece in pieces for _, group, _ in piece.groups}
        assert asked == {id(group) for group in groups}, "the reference was asked for other groups"
        self._last = (groups, self._calls.pop(batch))
        return list(self._last[1])


NO_EARLY_SCORES = NoEarlyScores()
