"""Scenarios of a reference that follows the policy. See `scenarios`."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import deepspeed
from torch import Tensor

from rlhf_ray.publish.bucket import WeightBucket, pack_buckets, unpack
from rlhf_ray.training.engine.shards import is_partitioned
from rlhf_ray.training.engine.slicing.tensor_slice import slice_of
from rlhf_ray.training.roles.reference import Reference
from tests.stack.training.rank import Rank
from tests.stack.training.samples import VOCABULARY, groups_of

# A third of the embedding: many buckets, and one tensor that is larger than a bucket.
BUCKET_BYTES = VOCABULARY * 32 * 4 // 3
NUM_MOVES = 3


def ema_reference(here: Rank, *, name: str, decay: float, **reference: Any) -> dict[str, Any]:
    """A policy of some updates, and a reference that follows it after each one.

    The reference is then saved, and another one goes on from the file.
    """
    policies, scores, shapes = _policies(here)
    groups = _groups(here)
    folder = here.folder / f"moved_{name}_{here.world_size}"
    result: dict[str, Any] = {"policy_scores": scores, "scores": [], "weights": []}
    with here.reference(decay=decay, **reference) as role:
        role.check_weights(shapes)
        # The first pass leaves small parameters gathered on every rank; an update must drop them.
        result["first_scores"] = _scores(role, groups)
        for number, buckets in enumerate(policies):
            follow(role, buckets)
            result["scores"].append(_scores(role, groups))
            result["weights"].append(whole_weights(role))
            if number == 0:
                role.save_checkpoint(folder)
    with here.reference(decay=decay, **reference) as role:
        before = whole_weights(role)
        _scores(role, groups)
        role.load_checkpoint(folder)
        result["loaded_scores"] = _scores(role, groups)
        result["loaded"] = {"before": before, "after": whole_weights(role)}
        for buckets in policies[1:]:
            follow(role, buckets)
        result["resumed_weights"] = whole_weights(role)
        result["resumed_scores"] = _scores(role, groups)
    result["policies"] = [unpacked(buckets) for buckets in policies]
    return result


def refused_buckets(here: Rank) -> dict[str, str]:
    """Messages about wrong, repeated and missing weights of an update."""
    (buckets, *_), _, shapes = _policies(here)
    first = buckets[0]
    renamed = replace(first, names=("model.other.weight", *first.names[1:]))
    rows, *width = first.shapes[0]
    turned = replace(first, shapes=((*width, rows), *first.shapes[1:]))
    requests = {
        "name": [renamed],
        "shape": [turned],
        "twice": [first, first],
        "left_out": buckets[1:],
    }
    errors = {}
    with here.reference(zero_stage=3) as role:
        for name, sent in requests.items():
            try:
                follow(role, sent)
            except ValueError as error:
                errors[name] = str(error)
        follow(role, buckets)
        try:
            role.check_weights({**shapes, "lm_head.weight": (VOCABULARY, 32)})
        except ValueError as error:
            errors["check"] = str(error)
    return errors


def other_stage_checkpoint(here: Rank) -> dict[str, Any]:
    """Sharded weights that have followed a policy, read without sharding."""
    folder = here.folder / f"moved_other_stage_{here.world_size}"
    (buckets, *_), _, _ = _policies(here)
    with here.reference(zero_stage=3) as role:
        follow(role, buckets)
        role.save_checkpoint(folder)
        saved = whole_weights(role)
    with here.reference() as role:
        before = whole_weights(role)
        role.load_checkpoint(folder)
        return {"saved": saved, "before": before, "loaded": whole_weights(role)}


def follow(role: Reference, buckets: list[WeightBucket]) -> None:
    role.begin_update()
    for bucket in buckets:
        role.load_bucket(bucket)
    role.finish_update()


def whole_weights(role: Reference) -> dict[str, Tensor]:
    """Weights by name, whole on every rank."""
    weights = {}
    for name, tensor in role._weights._tensors.items():
        sharded = is_partitioned(tensor)
        with deepspeed.zero.GatheredParameters([tensor]) if sharded else nullcontext():
            part = slice_of(tensor)
            whole = tensor.detach() if part is None else part.joined(tensor.detach())
            weights[name] = whole.clone()
    return weights


def unpacked(buckets: list[WeightBucket]) -> dict[str, Tensor]:
    return {name: tensor.clone() for bucket in buckets for name, tensor in unpack(bucket)}


@functools.cache
def _policies(here: Rank) -> tuple[list[list[WeightBucket]], list[list[Tensor]], Any]:
    """Weights in buckets and scores after each of some updates; and the weights' shapes."""
    policies, scores = [], []
    with here.learner(zero_stage=2, warmup_steps=0) as learner:
        for _ in range(NUM_MOVES):
            here.update(learner)
            policies.append(list(pack_buckets(learner.named_weights(), BUCKET_BYTES)))
            scores.append(_scores(learner, _groups(here)))
        return policies, scores, learner.weight_shapes()


def _groups(here: Rank) -> list[Any]:
    return groups_of(here.data, *([(0, 5)] if here.rank == 0 else [(4, 5)]))


def _scores(role: Any, groups: list[Any]) -> list[Tensor]:
    return [scored.values for scored in role.score(groups)]
