"""The EMA of a reference on one rank, with whole tensors and without a process group."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_ray.publish.bucket import pack_buckets
from rlhf_ray.training.engine.shards import distinct_tensors
from rlhf_ray.training.weights.ema_reference import EmaReference
from rlhf_ray.training.weights.named import weight_shapes


def make_model(*, seed: int = 0, tied: bool = True, vocab_size: int = 30) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def follow(moving: EmaReference, policy: nn.Module) -> None:
    moving.begin()
    for bucket in pack_buckets(distinct_tensors(policy).items(), 256):
        moving.load(bucket)
    moving.finish()


@pytest.mark.parametrize("tied", [True, False])
def test_all_weights_are_copied_and_a_tied_head_stays_tied(tied):
    policy, reference = make_model(seed=1, tied=tied), make_model(seed=2, tied=tied)
    moving = EmaReference(reference, decay=0.0)
    moving.check(weight_shapes(policy))
    follow(moving, policy)
    for name, value in policy.state_dict().items():
        assert torch.equal(reference.state_dict()[name], value), name
    assert (reference.lm_head.weight is reference.model.embed_tokens.weight) == tied


def test_buffers_are_copied_and_parameters_are_averaged():
    policy, reference = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        policy.weight.fill_(3.0)
        policy.running_mean.fill_(5.0)
        policy.num_batches_tracked.fill_(7)
    follow(EmaReference(reference, decay=0.5), policy)
    assert reference.weight.tolist() == [2.0] * 3
    assert reference.running_mean.tolist() == [5.0] * 3
    assert reference.num_batches_tracked.item() == 7


@pytest.mark.parametrize(
    ("policy", "reference", "words"),
    [
        ({"tied": False}, {}, "the reference has no lm_head.weight"),
        ({}, {"tied": False}, "the policy has no lm_head.weight"),
        (
            {"vocab_size": 32},
            {},
            r"model.embed_tokens.weight \[32, 8\] of the policy, \[30, 8\] of the reference",
        ),
    ],
)
def test_models_that_differ_are_refused_before_and_during_an_update(policy, reference, words):
    source, moving = make_model(**policy), EmaReference(make_model(**reference), decay=0.0)
    with pytest.raises(ValueError, match=f"{words}; a reference that follows the policy needs"):
        moving.check(weight_shapes(source))
    with pytest.raises(ValueError, match=r"algorithm\.reference_every to 0"):
        follow(moving, source)


def test_only_the_first_of_many_names_are_listed():
    source, moving = make_model(), EmaReference(nn.Linear(2, 2), decay=0.0)
    with pytest.raises(ValueError, match=r"has no model.embed_tokens.weight, .* and 17 more"):
        moving.check(weight_shapes(source))


def test_a_state_of_another_model_is_refused():
    state = EmaReference(make_model(vocab_size=32), decay=0.0).state_dict()
    with pytest.raises(ValueError, match="the saved reference has"):
        EmaReference(make_model(), decay=0.0).load_state_dict(state)


def test_a_float32_ema_resumes_from_bfloat16_weights_and_the_reverse():
    """A resumed run may have another decay than the saved one."""
    fine = EmaReference(make_model(seed=1).bfloat16(), decay=0.9)
    follow(fine, make_model(seed=2))
    coarse = EmaReference(make_model(seed=3).bfloat16(), decay=0.0)
    coarse.load_state_dict(fine.state_dict())
    for name, value in fine.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(coarse.state_dict()[name], value.bfloat16()), name
    back = EmaReference(make_model(seed=4).bfloat16(), decay=0.9)
    back.load_state_dict(coarse.state_dict())
    for name, value in coarse.state_dict().items():
        assert torch.equal(back.state_dict()[name], value.float()), name
