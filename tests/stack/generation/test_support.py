"""Sampling from a part of the vocabulary: what the engine kept, and the learner's share in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_ray.batching.layout import MicroBatch, lay_out
from rlhf_ray.records import RolloutGroup
from rlhf_ray.records.support import join_supports
from rlhf_ray.training.forward.modules import PolicyForward
from tests.stack.generation.harness import StartedEngine, make_prompt, token_logits

pytestmark = pytest.mark.stack

PROMPTS = [make_prompt(number) for number in range(4)]
# The first is what the engine and the learner must agree on; the others make one of the three
# the narrowest. A tiny model that knows nothing is almost uniform: a low temperature is not.
EVERYTHING: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "stop": ["e"],
    "max_response_tokens": 60,
}
NARROWEST: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "top_k": {"temperature": 0.7, "top_k": 7},
    "top_p": {"temperature": 0.1, "top_p": 0.5, "top_k": 100},
    "min_p": {"temperature": 0.1, "min_p": 0.3, "top_k": 100, "top_p": 0.99},
}
# Where rounding may decide whether a token is kept.
EDGE = 1e-4


def rollouts(engine: StartedEngine, settings: dict[str, Any]) -> list[RolloutGroup]:
    with engine.changed(**settings):
        return engine.generate(*PROMPTS)


def joined(groups: list[RolloutGroup]) -> Tensor:
    support = join_supports(
        [group.support_token_ids for group in groups],
        [group.token_ids.shape[0] for group in groups],
    )
    assert support is not None
    return support


def laid_out(groups: list[RolloutGroup], support_token_ids: Tensor | None) -> MicroBatch:
    lengths = torch.cat([group.lengths for group in groups])
    return lay_out(
        torch.cat([group.token_ids for group in groups]),
        lengths,
        torch.cat([group.loss_mask for group in groups]),
        support_token_ids,
        range(lengths.shape[0]),
    )


def learners_gap(
    model: PreTrainedModel, groups: list[RolloutGroup], temperature: float, kept: Tensor | None
) -> float:
    """The largest difference between engine and learner on a sampled token."""
    batch = laid_out(groups, kept)
    with torch.no_grad():
        found, _ = PolicyForward(model)(
            batch.input_ids, batch.hidden_index, batch.targets, temperature, batch.support_token_ids
        )
    expected = torch.cat([group.generator_logprobs for group in groups])[batch.token_index]
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def support_by_torch(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The filters one after the other, written out; [M, V] bool."""
    logits = logits.double() / temperature
    probabilities = logits.softmax(dim=1)
    kept = probabilities >= min_p * probabilities.amax(dim=1, keepdim=True)
    logits = logits.masked_fill(~kept, -torch.inf)
    kept &= logits >= logits.topk(top_k, dim=1).values[:, -1:]
    probabilities, order = (
        logits.masked_fill(~kept, -torch.inf).softmax(dim=1).sort(dim=1, descending=True)
    )
    before = probabilities.cumsum(dim=1) - probabilities
    return kept & torch.zeros_like(kept).scatter(1, order, before < top_p)


def logits_of(model: PreTrainedModel, groups: list[RolloutGroup]) -> Tensor:
    """Logits [M, V] of all sampled tokens."""
    rows = []
    for group in groups:
        lengths = group.lengths.tolist()
        for tokens, mask in zip(
            group.token_ids.split(lengths), group.loss_mask.split(lengths), strict=True
        ):
            rows.append(token_logits(model, tuple(tokens.tolist()))[mask[1:]])
    return torch.cat(rows)


def as_mask(support_token_ids: Tensor, vocab_size: int) -> Tensor:
    """Sets of token ids [M, K] as [M, V] bool."""
    places = support_token_ids.long() % (vocab_size + 1)
    empty = torch.zeros(support_token_ids.shape[0], vocab_size + 1, dtype=torch.bool)
    # -1 becomes the column behind the last one.
    places[support_token_ids < 0] = vocab_size
    return empty.scatter(1, places, True)[:, :vocab_size]


def sampled_sets(groups: list[RolloutGroup]) -> Tensor:
    mask = torch.cat([group.loss_mask for group in groups])
    kept = joined(groups)
    assert bool((kept[~mask] == -1).all())
    return kept[mask]


def test_the_learners_logprobs_are_the_engines_under_all_filters_together(engine, models):
    groups = rollouts(engine, EVERYTHING)
    assert any(reason == "stop" for group in groups for reason in group.finish_reasons)
    kept = joined(groups)
    assert learners_gap(models["tied0"], groups, 0.7, kept) < 1e-4
    # Over the whole vocabulary it is another distribution: the comparison can fail.
    assert learners_gap(models["tied0"], groups, 0.7, None) > 0.1


@pytest.mark.parametrize("name", NARROWEST)
def test_the_sets_are_those_of_the_filters(engine, models, name):
    groups = rollouts(engine, NARROWEST[name])
    found = sampled_sets(groups)
    assert (
        learners_gap(
            models["tied0"],
            groups,
            NARROWEST[name]["temperature"],
            joined(groups),
        )
        < 1e-4
    )
    logits = logits_of(models["tied0"], groups)
    settings = {k: v for k, v in NARROWEST[name].items() if k in ("temperature", "top_k")}
    top_p, min_p = NARROWEST[name].get("top_p", 1.0), NARROWEST[name].get("min_p", 0.0)
    fewest = support_by_torch(logits, **settings, top_p=top_p - EDGE, min_p=min_p + EDGE)
    most = support_by_torch(logits, **settings, top_p=top_p + EDGE, min_p=max(min_p - EDGE, 0.0))
    mask = as_mask(found, logits.shape[1])
    assert bool((mask | ~fewest).all()), "a token that could be sampled is missing"
    assert bool((most | ~mask).all()), "a token that could not be sampled is there"
    sizes = mask.sum(dim=1)
    assert int(sizes.min()) >= 1
    assert int(sizes.max()) <= settings["top_k"]
    if name in ("top_p", "min_p"):
        assert int(sizes.min()) < int(sizes.max()) < 100


def test_the_sampled_token_is_in_its_set(engine):
    for settings in NARROWEST.values():
        for group in rollouts(engine, settings):
            tokens, kept = (
                group.token_ids[group.loss_mask],
                group.support_token_ids[group.loss_mask],
            )
            assert bool((kept == tokens[:, None]).any(dim=1).all())


def test_without_filters_there_are_no_sets(engine):
    (group, *_) = rollouts(engine, {"temperature": 0.7})
    assert group.support_token_ids is None


def test_tokens_that_tie_with_the_last_one_are_all_in_the_set(engine, models):
    """Tokens 2 i and 2 i + 1 are alike, so that an odd k cuts a pair; vLLM on a CPU keeps both."""
    twins = copy.deepcopy(models["tied0"])
    with torch.no_grad():
        weight = twins.get_input_embeddings().weight
        weight[1::2] = weight[::2]
    engine.run(engine.update(twins))
    groups = rollouts(engine, {"temperature": 0.7, "top_k": 5, "ignore_eos": True})
    kept = sampled_sets(groups)
    assert set((kept >= 0).sum(dim=1).tolist()) == {6}
    pairs = (kept // 2).sort(dim=1).values
    assert torch.equal(pairs[:, ::2], pairs[:, 1::2])
    whole = joined(groups)
    assert learners_gap(twins, groups, 0.7, whole) < 1e-4
