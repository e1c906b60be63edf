"""Records of supervised training: a sample with its labels, and one step's samples on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.records.travel import TravellingRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledTokens(TravellingRecord):
    """One text, or one conversation, as tokens.

    Attributes:
        token_ids [n] int64.
        loss_mask [n] bool: True on the predicted tokens; never on the first token.
    """

    token_ids: Tensor
    loss_mask: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.loss_mask.shape)
        if shape != tuple(self.token_ids.shape) or len(shape) != 1:
            raise ValueError(
                f"loss_mask has shape {shape}, token_ids {tuple(self.token_ids.shape)}; both: [n]"
            )
        if shape[0] and bool(self.loss_mask[0]):
            raise ValueError("the first token cannot be predicted: nothing precedes it")


def num_scored_tokens(answer: LabelledTokens) -> int:
    """Tokens of prompt and answer up to the end of the answer, where a reward model is read.

    A chat template may add tokens after the answer. Rollouts do not have them, so a score after
    them would be the score of a state that reinforcement learning never asks for.
    """
    return int(answer.loss_mask.nonzero()[-1]) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedSamples(TravellingRecord):
    """Texts of one optimiser step on one rank.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged samples.
        micro_batches: as in `records.Experience`.
        num_loss_tokens: GLOBAL count of masked tokens over all ranks of this step.
        num_sequences: GLOBAL count of samples with at least one masked token.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    micro_batches: tuple[tuple[int, ...], ...]
    num_loss_tokens: int
    num_sequences: int

    @property
    def support_token_ids(self) -> None:
        """No support: texts were not sampled."""
