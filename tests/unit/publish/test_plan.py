"""Plans: cut like the packed buckets, filled with what the plan says and nothing else."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.publish.bucket import pack_buckets
from rlhf_ray.publish.plan import fill, plan_buckets
from tests.unit.publish.test_bucket import make_weights


def specs(weights):
    return [(name, str(w.dtype).removeprefix("torch."), tuple(w.shape)) for name, w in weights]


@pytest.mark.parametrize("bucket_bytes", [1, 64, 150, 256, 10_000])
def test_a_plan_is_cut_and_filled_like_packed_buckets(bucket_bytes):
    weights = list(make_weights().items())
    plan = plan_buckets(specs(weights), bucket_bytes)
    packed = list(pack_buckets(weights, bucket_bytes))
    assert [(b.names, b.dtypes, b.shapes, b.num_bytes) for b in plan] == [
        (b.names, b.dtypes, b.shapes, b.num_bytes) for b in packed
    ]
    named = iter(weights)
    for bucket in plan:
        flat = torch.full((bucket.num_bytes,), 255, dtype=torch.uint8)
        fill(flat, bucket, named)
        for name, tensor in bucket.views(flat):
            assert torch.equal(tensor, make_weights()[name]), name
    assert next(named, None) is None


def test_no_weights_make_no_buckets():
    assert plan_buckets([], 64) == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([("w", torch.ones(3))], r"the plan of the transfer has w \(4,\) .* gives w \(3,\)"),
        ([("v", torch.ones(4))], r"has w \(4,\) where the learner gives v \(4,\)"),
        ([], r"has w \(4,\) where the learner gives no more weights None"),
        ([("w", torch.ones(4, dtype=torch.bfloat16))], "w is torch.bfloat16 in the learner"),
    ],
)
def test_other_weights_than_planned_are_refused(given, words):
    (bucket,) = plan_buckets([("w", "float32", (4,))], 64)
    with pytest.raises(RuntimeError, match=words):
        fill(torch.zeros(16, dtype=torch.uint8), bucket, iter(given))
