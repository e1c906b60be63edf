"""Several texts in one row: the loss is that of separate rows; neighbours do not attend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.batching.row_layout import row_layout
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.objectives.text import spread_samples, text_objective
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.training.forward.modules import PolicyForward

BUDGET = 32


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # Attention of some size: with the usual 0.02 a leak would hardly be seen.
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def text(seed: int, length: int, *, masked: int) -> LabelledTokens:
    ids = torch.randint(0, 29, (length,), generator=torch.Generator().manual_seed(seed))
    return LabelledTokens(token_ids=ids, loss_mask=torch.arange(length) >= length - masked)


TEXTS = (text(1, 9, masked=8), text(2, 5, masked=2), text(3, 7, masked=4))


def laid_out(
    model: LlamaForCausalLM, texts: tuple[LabelledTokens, ...], layout: str
) -> tuple[MicroBatch, int]:
    """The one micro-batch of these texts, and how many tokens are predicted in all."""
    role = RoleConfig(layout=layout, max_tokens_per_micro_batch=BUDGET)
    plan = RankPlan(num_ranks=1, max_tokens_per_micro_batch=BUDGET, layout=layout)
    (samples,) = spread_samples(texts, plan)
    (rows,) = samples.micro_batches
    batch = row_layout(model.get_decoder(), role, "sdpa").lay_out(
        samples.token_ids, samples.lengths, samples.loss_mask, samples.support_token_ids, rows
    )
    return batch, samples.num_loss_tokens


def logprobs_of(model: LlamaForCausalLM, batch: MicroBatch) -> Tensor:
    inputs = (batch.input_ids, batch.hidden_index, batch.targets, 1.0, batch.support_token_ids)
    return PolicyForward(model)(*inputs, batch.packing)[0]


def loss_and_gradient(model: LlamaForCausalLM, layout: str) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    batch, num_loss_tokens = laid_out(model, TEXTS, layout)
    loss = text_objective(logprobs_of(model, batch), num_loss_tokens, name="loss").loss
    loss.backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradient


def test_packed_rows_have_the_loss_and_gradient_of_rows_apart(model: LlamaForCausalLM) -> None:
    packed, _ = laid_out(model, TEXTS, "packed")
    padded, _ = laid_out(model, TEXTS, "padded")
    assert packed.input_ids.shape[0] < padded.input_ids.shape[0] == len(TEXTS)
    loss, gradient = loss_and_gradient(model, "packed")
    expected_loss, expected = loss_and_gradient(model, "padded")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    norm = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    for name, value in expected.items():
        assert float((gradient[name] - value).norm()) < 1e-5 * norm, name


@pytest.mark.parametrize("changed", range(len(TEXTS)))
def test_other_tokens_in_a_neighbour_change_nothing(model: LlamaForCausalLM, changed: int) -> None:
    other = list(TEXTS)
    ids = (TEXTS[changed].token_ids + 1) % 29
    other[changed] = LabelledTokens(token_ids=ids, loss_mask=TEXTS[changed].loss_mask)
    batch, _ = laid_out(model, TEXTS, "packed")
    after, _ = laid_out(model, tuple(other), "packed")
    assert torch.equal(batch.token_index, after.token_index)
    is_own = batch.targets == after.targets
    assert int(is_own.sum()) == sum(
        int(sample.loss_mask.sum()) for n, sample in enumerate(TEXTS) if n != changed
    )
    with torch.no_grad():
        before, now = logprobs_of(model, batch), logprobs_of(model, after)
    torch.testing.assert_close(now[is_own], before[is_own], rtol=1e-6, atol=1e-6)
    assert float((now[~is_own] - before[~is_own]).abs().max()) > 1e-3
