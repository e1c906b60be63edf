"""Order and groups of the named weights of a model."""

from __future__ import annotations

import contextlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_ray.training.weights import named as weights


class Recorder:
    """A stand-in for the engine that records which tensors are gathered together."""

    def __init__(self) -> None:
        self.gathered_together: list[int] = []

    @contextlib.contextmanager
    def gathered(self, tensors):
        self.gathered_together.append(sum(tensor.numel() for tensor in tensors))
        yield


def make_model(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def test_a_tied_head_is_given_once():
    model = make_model(tied=True)
    names = [name for name, _ in weights.named_weights(Recorder(), model)]
    assert names == [name for name in model.state_dict() if name != "lm_head.weight"]


def test_an_untied_head_is_given_too():
    model = make_model(tied=False)
    found = dict(weights.named_weights(Recorder(), model))
    assert list(found) == list(model.state_dict())
    assert found["lm_head.weight"] is not found["model.embed_tokens.weight"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor)
        assert not found[name].requires_grad


def test_groups_are_bounded_and_in_order(monkeypatch):
    model = make_model(tied=False)
    monkeypatch.setattr(weights, "_GATHERED_ELEMENTS", 200)
    recorder = Recorder()
    names = [name for name, _ in weights.named_weights(recorder, model)]
    assert names == list(model.state_dict())
    sizes = [tensor.numel() for tensor in model.state_dict().values()]
    assert sum(recorder.gathered_together) == sum(sizes)
    # A tensor larger than the bound is a group by itself; every other group is within the bound.
    assert all(size <= 200 or size in sizes for size in recorder.gathered_together)
    assert 1 < len(recorder.gathered_together) < len(sizes)


def test_a_group_is_released_before_the_next_one_is_gathered(monkeypatch):
    monkeypatch.setattr(weights, "_GATHERED_ELEMENTS", 1)
    held = []

    class Holding(Recorder):
        @contextlib.contextmanager
        def gathered(self, tensors):
            held.append(len(tensors))
            assert len(held) == 1
            yield
            held.clear()

    assert len(list(weights.named_weights(Holding(), make_model(tied=False)))) == 21
