"""Five ragged samples with experience, the input of every rank of the training tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.records import Experience, Prompt, RolloutGroup

VOCABULARY = 260
LENGTHS = (5, 7, 9, 4, 12)
PROMPT_TOKENS = 2
TEMPERATURE = 0.7
MAX_RESPONSE_TOKENS = 64
# One for every role of every scenario of a table.
NUM_PORTS = 130
KL_COEFFICIENT = 0.05
# Per number of ranks and rank, the samples and their micro-batches: uneven token counts, and micro-
# batches without a sample on rank 1 of 2.
SPLITS = {
    1: (((0, 1, 2, 3, 4), ((0, 1, 2), (3,), (4,))),),
    2: (((0, 1, 2, 3), ((0, 1), (2,), (3,))), ((4,), ((0,), (), ()))),
    4: (
        ((0, 1), ((0,), (1,))),
        ((2,), ((0,), ())),
        ((3,), ((0,), ())),
        ((4,), ((0,), ())),
    ),
}


def make_samples() -> dict[str, Tensor]:
    """The per-token fields of an `Experience` [N], with a hole in the mask of the last sample."""
    generator = torch.Generator().manual_seed(7)
    total = sum(LENGTHS)
    column = torch.cat([torch.arange(length) for length in LENGTHS])
    mask = column >= PROMPT_TOKENS
    mask[-3] = False

    def numbers(mean: float, spread: float) -> Tensor:
        drawn = mean + spread * torch.randn(total, generator=generator)
        return torch.where(mask, drawn, 0.0)

    # About log(1 / VOCABULARY), as of an untrained model: some ratios are clipped, some not.
    return {
        "token_ids": torch.randint(0, VOCABULARY, (total,), generator=generator),
        "loss_mask": mask,
        "advantages": numbers(0.0, 1.0),
        "old_logprobs": numbers(-5.6, 0.3),
        "generator_logprobs": numbers(-5.6, 0.3),
        "reference_logprobs": numbers(-5.6, 0.3),
        "returns": numbers(0.0, 1.0),
        "values": numbers(0.0, 0.3),
        "importance_weights": mask.float(),
        "covariance_selected": torch.zeros(total, dtype=torch.bool),
    }


def support_sets(token_ids: Tensor, mask: Tensor) -> Tensor:
    """Sets of 8 tokens, of 6 for even ones: the sampled one and others; [N, 8] int32."""
    others = torch.arange(8) * 13
    kept = (token_ids[:, None] + others) % VOCABULARY
    kept[token_ids % 2 == 0, 6:] = -1
    return torch.where(mask[:, None], kept, -1).int()


def reference_rows(support_token_ids: Tensor) -> Tensor:
    """Log-probabilities [N, K] of a made-up reference; -inf without a token."""
    opinions = torch.sin(support_token_ids.float()) - torch.arange(support_token_ids.shape[1]) / 4
    rows = opinions.masked_fill(support_token_ids < 0, -torch.inf).log_softmax(dim=1)
    return torch.where(support_token_ids < 0, -torch.inf, rows)


def share_prompts(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, but the first three samples have one prompt."""
    token_ids = data["token_ids"].clone()
    for sample in (1, 2):
        start = sum(LENGTHS[:sample])
        token_ids[start : start + PROMPT_TOKENS] = token_ids[:PROMPT_TOKENS]
    return data | {"token_ids": token_ids}


def load_samples(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "samples.pt", weights_only=True)


def make_experience(
    data: dict[str, Tensor], rows: tuple[int, ...], micro_batches: tuple[tuple[int, ...], ...]
) -> Experience:
    lengths = torch.tensor(LENGTHS)
    starts = lengths.cumsum(0) - lengths
    spans = [torch.arange(int(starts[r]), int(starts[r] + lengths[r])) for r in rows]
    index = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)
    # The whole vocabulary, unless the data says otherwise.
    fields = {"support_token_ids": None, "reference_support_logprobs": None}
    return Experience(
        **fields | {name: tensor[index] for name, tensor in data.items()},
        lengths=lengths[list(rows)],
        micro_batches=micro_batches,
        num_loss_tokens=int(data["loss_mask"].sum()),
        num_sequences=len(LENGTHS),
        num_positive_tokens=int((data["loss_mask"] & (data["advantages"] > 0)).sum()),
        old_logprobs_from=OldLogprobsFrom.LEARNER_BEFORE_UPDATE,
    )


def make_group(
    prompt_id: str,
    token_ids: Tensor,
    lengths: Tensor,
    mask: Tensor,
    support_token_ids: Tensor | None,
) -> RolloutGroup:
    """A group that is not scored; its prompt's name is all that a scoring role needs."""
    num_samples = lengths.shape[0]
    return RolloutGroup(
        prompt=Prompt(
            prompt_id=prompt_id,
            stream_index=0,
            text="",
            token_ids=(),
            answer=None,
            source="test",
            seed=0,
            columns={},
        ),
        sample_indices=tuple(range(num_samples)),
        token_ids=token_ids,
        lengths=lengths,
        loss_mask=mask,
        generator_logprobs=torch.zeros(token_ids.shape[0]),
        support_token_ids=support_token_ids,
        weight_versions=torch.zeros(token_ids.shape[0], dtype=torch.int64),
        responses=("",) * num_samples,
        finish_reasons=("stop",) * num_samples,
        rewards=torch.zeros(0, dtype=torch.float64),
        reward_parts={},
        failures=(),
    )


def groups_of(data: dict[str, Tensor], *wanted: tuple[int, int]) -> list[RolloutGroup]:
    """Groups of consecutive samples: (first, last + 1)."""
    groups, support = [], data.get("support_token_ids")
    for first, end in wanted:
        start, stop = sum(LENGTHS[:first]), sum(LENGTHS[:end])
        groups.append(
            make_group(
                f"{first}-{end}",
                data["token_ids"][start:stop],
                torch.tensor(LENGTHS[first:end]),
                data["loss_mask"][start:stop],
                None if support is None else support[start:stop],
            )
        )
    return groups
