"""Packed rows and shared prompts give what padded rows give, in real decoders."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_flash_attention_utils import _is_packed_sequence, _prepare_from_posids
from transformers.models.gemma2 import Gemma2Config, Gemma2ForCausalLM
from transformers.models.mamba import MambaConfig, MambaForCausalLM

from rlhf_ray.batching.layout import MicroBatch, find_targets, lay_out, lay_out_padded
from rlhf_ray.batching.layout_cost import PairCosts, choose_rows
from rlhf_ray.batching.packing import lay_out_packed, lay_out_varlen, sample_shapes
from rlhf_ray.batching.row_layout import RowLayout, row_layout
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.training.forward.modules import PolicyForward, ValueForward

SIZES: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Attention of some size: with the usual 0.02 a leak would hardly be seen.
    "initializer_range": 0.3,
}
MODELS = {
    "llama": lambda attention: LlamaForCausalLM(
        LlamaConfig(**SIZES, attn_implementation=attention)
    ),
    "qwen2": lambda attention: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, attn_implementation=attention)
    ),
    "qwen3": lambda attention: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=8, attn_implementation=attention)
    ),
    "cohere": lambda attention: CohereForCausalLM(
        CohereConfig(**SIZES, attn_implementation=attention)
    ),
}
T, F = True, False
# Two groups, one of them with a hole; a group of one; one whose prompt only begins alike; a sample
# in which nothing is predicted.
SAMPLES: list[tuple[list[int], list[bool]]] = [
    ([5, 6, 7, 8, 11, 12], [F, F, F, F, T, T]),
    ([5, 6, 7, 8, 13, 14, 15, 16], [F, F, F, F, T, T, F, T]),
    ([5, 6, 7, 8, 17], [F, F, F, F, T]),
    ([5, 6, 7, 9, 11, 12], [F, F, F, F, T, T]),
    ([20, 21, 22, 23, 24], [F, F, T, T, T]),
    ([20, 21, 25], [F, F, T]),
    ([3, 4, 5], [F, F, F]),
    ([26, 27, 28], [F, T, T]),
]
ROWS = [4, 0, 6, 3, 1, 5, 2, 7]


def data() -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.tensor([token for tokens, _ in SAMPLES for token in tokens]),
        torch.tensor([len(tokens) for tokens, _ in SAMPLES]),
        torch.tensor([keep for _, mask in SAMPLES for keep in mask]),
    )


def kept() -> Tensor:
    """A support of two tokens for every token."""
    token_ids = data()[0]
    return torch.stack([token_ids, token_ids + 1], dim=1).int()


def batch_in(kind: str, *, one_row: bool) -> MicroBatch:
    token_ids, lengths, mask = data()
    targets = find_targets(lengths, mask, ROWS)
    if kind == "padded":
        return lay_out_padded(token_ids, targets)
    price = 0.0 if one_row else 1.0
    shapes = sample_shapes(token_ids, targets)
    if kind == "varlen":
        return lay_out_varlen(token_ids, targets, shapes)
    costs = PairCosts(causal=price, masked=price)
    rows = choose_rows(shapes, costs, kinds=(kind,), max_tokens=10**9)
    assert (len(rows.trees) == 1) == one_row
    return lay_out_packed(token_ids, targets, shapes, rows)


def weights_like(values: Tensor) -> Tensor:
    """A different factor for every token, like an advantage."""
    return torch.linspace(-1.0, 2.0, values.shape[0], dtype=values.dtype)


def logprobs_and_gradients(model: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logprobs, _ = PolicyForward(model)(
        batch.input_ids,
        batch.hidden_index,
        batch.targets,
        0.7,
        batch.support_token_ids,
        batch.packing,
    )
    (weights_like(logprobs) * logprobs).sum().backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal(
    found: tuple[Tensor, dict[str, Tensor]],
    expected: tuple[Tensor, dict[str, Tensor]],
    tolerance: float,
) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = float(gradient.abs().max())
        difference = float((found[1][name] - gradient).abs().max())
        assert difference <= tolerance * max(scale, 1.0), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_values_and_gradients_equal_those_of_padded_rows(name, attention):
    torch.manual_seed(0)
    model = MODELS[name](attention).eval()
    # Norms, rotary embeddings and eager attention compute in float32 whatever the weights are.
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        model.to(dtype)
        expected = logprobs_and_gradients(model, batch_in("padded", one_row=False))
        assert all(bool(gradient.any()) for gradient in expected[1].values())
        for kind in ("packed", "shared"):
            for one_row in (True, False):
                found = logprobs_and_gradients(model, batch_in(kind, one_row=one_row))
                assert_equal(found, expected, tolerance)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_positions_alone_tell_samples_apart(name):
    """transformers gives sdpa a mask by the positions, where flash-attn gets lengths."""
    torch.manual_seed(0)
    model = MODELS[name]("sdpa").eval().double()
    expected = logprobs_and_gradients(model, batch_in("padded", one_row=False))
    batch = batch_in("varlen", one_row=True)
    assert batch.packing is not None
    assert batch.packing.visible is None
    assert_equal(logprobs_and_gradients(model, batch), expected, 1e-6)
    wrong = replace(batch, packing=None)
    found, _ = logprobs_and_gradients(model, wrong)
    assert float((found - expected[0]).abs().max()) > 1e-2


def test_lengths_of_a_row_are_those_of_its_samples():
    """By transformers' own reading of positions for flash-attn; no padding, no mask."""
    batch = batch_in("varlen", one_row=True)
    assert batch.packing is not None
    positions = batch.packing.position_ids
    states = torch.zeros(*batch.input_ids.shape, 1, 1)
    assert _is_packed_sequence(positions, 1)
    *_, (ends, _), (longest, _) = _prepare_from_posids(states, states, states, positions)
    # Samples in the order of ROWS, up to the token before the last predicted one; the one in which
    # nothing is predicted is left out.
    assert ends.diff().tolist() == [4, 5, 5, 7, 2, 4, 2]
    assert (longest, batch.input_ids.shape) == (7, (1, 29))


@pytest.mark.parametrize("kind", ["packed", "shared"])
def test_values_of_a_critic_equal_those_of_padded_rows(kind):
    torch.manual_seed(0)
    backbone = MODELS["llama"]("sdpa").eval().double().model
    critic = ValueForward(ScalarHeadModel(backbone, nn.Linear(16, 1, dtype=torch.float64)))

    def values_and_gradients(batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        critic.zero_grad()
        values = critic(batch.input_ids, batch.hidden_index, batch.packing)
        (weights_like(values) * values.square()).sum().backward()
        return values.detach(), {n: p.grad.clone() for n, p in critic.named_parameters()}

    expected = values_and_gradients(batch_in("padded", one_row=False))
    assert_equal(values_and_gradients(batch_in(kind, one_row=True)), expected, 1e-6)


def test_recomputed_activations_keep_the_mask():
    torch.manual_seed(0)
    model = MODELS["llama"]("sdpa").double()
    expected = logprobs_and_gradients(model, batch_in("padded", one_row=False))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_equal(logprobs_and_gradients(model, batch_in("shared", one_row=True)), expected, 1e-6)


def test_without_the_mask_it_would_not_be_equal():
    """The comparison above can fail."""
    torch.manual_seed(0)
    model = MODELS["llama"]("sdpa").eval()
    batch = batch_in("shared", one_row=True)
    assert batch.packing is not None
    expected, _ = logprobs_and_gradients(model, batch)
    causal = torch.ones_like(batch.packing.visible).tril()
    positions = torch.arange(batch.input_ids.shape[1])[None]
    for packing in (
        batch.packing._replace(visible=causal),
        batch.packing._replace(position_ids=positions),
    ):
        with torch.no_grad():
            found, _ = PolicyForward(model)(
                batch.input_ids,
                batch.hidden_index,
                batch.targets,
                0.7,
                batch.support_token_ids,
                packing,
            )
        assert float((found - expected).abs().max()) > 1e-2


class TestChoice:
    def rows(self, setting: str, max_tokens: int = 10**6) -> RowLayout:
        costs = PairCosts(causal=1e-3, masked=1e-3)
        return RowLayout(setting=setting, costs=costs, max_tokens=max_tokens)

    def test_padded_is_what_it_was(self):
        found = self.rows("padded").lay_out(*data(), kept(), ROWS)
        expected = lay_out(*data(), kept(), ROWS)
        assert found.packing is None
        for name in ("input_ids", "hidden_index", "targets", "token_index"):
            assert torch.equal(getattr(found, name), getattr(expected, name))

    @pytest.mark.parametrize("setting", ["auto", "packed", "padded"])
    def test_supports_follow_their_targets(self, setting):
        batch = self.rows(setting).lay_out(*data(), kept(), ROWS)
        expected = torch.stack([batch.targets, batch.targets + 1], dim=1).int()
        assert torch.equal(batch.support_token_ids, expected)

    def test_auto_takes_the_cheapest(self):
        batch = self.rows("auto").lay_out(*data(), kept(), ROWS)
        # Prompts of 4, 4, 2 and 1, answers of 1 + 3 + 0, 1, 2 + 0, 1; 8 rows of 7 if padded.
        assert batch.input_ids.numel() == 19
        alike = self.rows("auto").lay_out(*data(), kept(), [4, 4])
        assert alike.input_ids.shape == (1, 6)
        alone = self.rows("auto").lay_out(*data(), kept(), [4])
        assert alone.packing is None
        assert self.rows("packed").lay_out(*data(), kept(), [4]).packing is not None

    @pytest.mark.parametrize("setting", ["auto", "packed", "padded", "varlen"])
    def test_nothing_predicted_still_runs_the_model(self, setting):
        for rows in ([], [6]):
            batch = self.rows(setting).lay_out(*data(), kept(), rows)
            assert (batch.num_targets, batch.input_ids.tolist()) == (0, [[0]])
            assert batch.packing is None

    def test_no_forward_pass_is_over_the_budget(self):
        token_ids, lengths, mask = data()
        for setting in ("auto", "packed", "padded", "varlen"):
            for budget in (8, 12, 20, 60):
                layout = self.rows(setting, budget)
                plan = layout.plan(token_ids, lengths, mask)
                assert sorted(row for rows in plan for row in rows) == list(range(len(SAMPLES)))
                for rows in plan:
                    assert layout.lay_out(*data(), kept(), rows).input_ids.numel() <= budget
        assert len(self.rows("packed", 29).plan(*data())) == 1
        assert len(self.rows("padded", 29).plan(*data())) > 1
        assert (
            len(self.rows("varlen", sum(len(tokens) for tokens, _ in SAMPLES)).plan(*data())) == 1
        )


class IgnoresMasks(nn.Module):
    """A decoder that mixes tokens in its own way, whatever mask it is given."""

    dtype = torch.float32

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=False):
        return self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=False)


class RefusesMasks(IgnoresMasks):
    def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=False):
        if attention_mask is not None:
            raise ValueError("a mask of two dimensions, please")
        return self.inner(input_ids=input_ids, use_cache=False)


def decoder(name: str) -> Any:
    torch.manual_seed(0)
    llama = MODELS["llama"]("sdpa").eval()
    return {
        "llama": lambda: llama.model,
        "ignores": lambda: IgnoresMasks(llama.model),
        "refuses": lambda: RefusesMasks(llama.model),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=64)).model,
        "mistral without window": lambda: (
            MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)).model
        ),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)).model,
        "mamba": lambda: MambaForCausalLM(
            MambaConfig(vocab_size=29, hidden_size=16, num_hidden_layers=1)
        ).get_decoder(),
    }[name]().eval()


OBSTACLES = {
    "mistral": r"limited by sliding_window=64",
    "gemma2": r"it has layers of sliding_attention",
    "mamba": r"its forward pass has no position_ids",
    "ignores": r"its hidden states are then off by",
    "refuses": r"given a mask, it fails \(ValueError: a mask of two dimensions, please\)",
}


class TestModelsThatCannot:
    @pytest.mark.parametrize("name", sorted(OBSTACLES))
    def test_are_refused_or_padded(self, name, caplog):
        with pytest.raises(ValueError, match=OBSTACLES[name]):
            row_layout(decoder(name), RoleConfig(layout="packed"), "sdpa")
        with caplog.at_level(logging.WARNING):
            assert row_layout(decoder(name), RoleConfig(layout="auto"), "sdpa").setting == "padded"
        assert "runs on padded rows, one sample each" in caplog.text

    @pytest.mark.parametrize("name", sorted(OBSTACLES))
    def test_padded_rows_ask_nothing(self, name, caplog):
        assert row_layout(decoder(name), RoleConfig(layout="padded"), "sdpa").setting == "padded"
        assert caplog.text == ""

    def test_kernels_without_a_mask(self):
        with pytest.raises(ValueError, match=r"flash_attention_2 takes no mask for every pair"):
            row_layout(decoder("llama"), RoleConfig(layout="packed"), "flash_attention_2")

    @pytest.mark.parametrize("setting", ["auto", "varlen"])
    def test_kernels_that_take_lengths(self, setting):
        """They are tried on the device, by `row_trials`."""
        role = RoleConfig(layout=setting, max_tokens_per_micro_batch=77)
        layout = row_layout(decoder("llama"), role, "flash_attention_2")
        assert (layout.setting, layout.max_tokens) == ("varlen", 77)

    def test_ranks_that_share_samples_pad_unless_told(self):
        role = RoleConfig(layout="auto", num_ranks=2, sequence_parallel_size=2)
        assert row_layout(decoder("llama"), role, "sdpa").setting == "padded"
        assert row_layout(decoder("llama"), role, "flash_attention_2").setting == "padded"

    @pytest.mark.parametrize("name", ["llama", "mistral without window"])
    @pytest.mark.parametrize("setting", ["auto", "packed"])
    def test_others_can(self, name, setting, caplog):
        role = RoleConfig(layout=setting, max_tokens_per_micro_batch=77)
        layout = row_layout(decoder(name), role, "sdpa")
        assert (layout.setting, layout.max_tokens) == (setting, 77)
        assert caplog.text == ""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_rounding_is_no_obstacle(self, dtype):
        role = RoleConfig(layout="packed")
        assert row_layout(decoder("llama").to(dtype), role, "sdpa").setting == "packed"
