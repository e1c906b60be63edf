"""Records through pickle, as Ray passes them: what is copied, and what arrives."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_ray.records import (
    GroupSteps,
    LabelledTokens,
    PreferenceSamples,
    RolloutGroup,
    SupervisedSamples,
    TokenValues,
)
from rlhf_ray.testing.fakes import make_group, make_prompt

BIG = 100_000


def travelled(record: Any) -> tuple[Any, int, list[int]]:
    """The record on arrival, bytes inside the pickle, and bytes of each array next to it."""
    buffers: list[pickle.PickleBuffer] = []
    inside = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
    # `bytes` is read-only, as the memory of the object store is.
    sent = [bytes(buffer.raw()) for buffer in buffers]
    return pickle.loads(inside, buffers=sent), len(inside), [len(part) for part in sent]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


def big_values() -> TokenValues:
    return TokenValues(prompt_id="p", values=torch.randn(BIG))


def test_a_group_arrives_as_it_was():
    group = make_group(make_prompt(3), (0, 1), version=5, rewards=[(0.5, 1.0), (2.0, 3.0)])
    assert isinstance(group.steps, GroupSteps)
    arrived, _, _ = travelled(group)
    assert_same(arrived, group)
    assert isinstance(arrived, RolloutGroup)
    assert_same(copy.deepcopy(group), group)


@pytest.mark.parametrize(
    "record",
    [
        TokenValues(prompt_id="p", values=torch.zeros(0), support_logprobs=torch.zeros(0, 3)),
        TokenValues(prompt_id="p", values=torch.ones(2, 4).T[1], final_values=None),
        TokenValues(prompt_id="p", values=torch.ones(2, dtype=torch.bfloat16)),
        TokenValues(prompt_id="p", values=torch.ones(2, requires_grad=False)),
        LabelledTokens(token_ids=torch.arange(3), loss_mask=torch.tensor([False, True, True])),
        SupervisedSamples(
            token_ids=torch.arange(3),
            lengths=torch.tensor([3]),
            loss_mask=torch.tensor([False, True, True]),
            micro_batches=((0,),),
            num_loss_tokens=2,
            num_sequences=1,
        ),
        PreferenceSamples(
            token_ids=torch.arange(3),
            lengths=torch.tensor([3]),
            loss_mask=torch.tensor([False, True, True]),
            micro_batches=((0,),),
            prompts=torch.tensor([0]),
            ranks=torch.tensor([0]),
            margins=torch.tensor([0.0], dtype=torch.float64),
            reference_logprobs=torch.tensor([0.0], dtype=torch.float64),
            num_prompts=1,
        ),
    ],
    ids=lambda record: type(record).__name__,
)
def test_every_kind_of_record_and_tensor_arrives(record):
    arrived, _, _ = travelled(record)
    assert_same(arrived, record)


def test_tensors_travel_next_to_the_pickle_and_not_in_it():
    _, inside, arrays = travelled(big_values())
    assert inside < 1000
    assert arrays == [4 * BIG]


def test_a_slice_travels_without_the_memory_behind_it():
    memory = torch.randn(BIG)
    _, inside, arrays = travelled(TokenValues(prompt_id="p", values=memory[10:30]))
    assert inside + sum(arrays) < 1000


def test_a_tensor_of_two_fields_travels_once():
    both = torch.randn(BIG)
    arrived, _, arrays = travelled(TokenValues(prompt_id="p", values=both, final_values=both))
    assert arrays == [4 * BIG]
    assert arrived.values is arrived.final_values


def test_what_arrives_can_be_written_to():
    """Over the read-only memory of the object store a write would end the process."""
    arrived, _, _ = travelled(big_values())
    arrived.values.add_(1)
    arrived.values[0] = 7.0
    assert arrived.values[0] == 7.0
