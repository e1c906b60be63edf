"""Packing: every tensor comes back unchanged, in buckets within the limit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from rlhf_ray.publish.bucket import ALIGNMENT_BYTES, WeightBucket, offsets, pack_buckets, unpack


def make_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed": (7, 5),
        "norm": (3,),
        "scalar": (),
        "bias": (1,),
        "up": (4, 9),
        "down": (9, 4),
    }
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights["bias"] = weights["bias"].to(torch.bfloat16)
    weights["up"] = weights["up"].to(torch.bfloat16)
    weights["steps"] = torch.tensor([3, 2**40])
    # A view that is not contiguous, like a transposed weight.
    weights["down"] = weights["down"].t()
    return weights


@pytest.mark.parametrize("bucket_bytes", [1, 64, 150, 256, 10_000])
def test_every_tensor_comes_back(bucket_bytes):
    weights = make_weights()
    buckets = list(pack_buckets(weights.items(), bucket_bytes))
    unpacked = [pair for bucket in buckets for pair in unpack(bucket)]
    assert [name for name, _ in unpacked] == list(weights)
    for name, tensor in unpacked:
        assert tensor.dtype == weights[name].dtype
        assert torch.equal(tensor, weights[name]), name


def test_one_bucket_if_all_fit_and_one_each_if_none_fits():
    weights = make_weights()
    assert len(list(pack_buckets(weights.items(), 10_000))) == 1
    assert len(list(pack_buckets(weights.items(), 1))) == len(weights)


def test_buckets_keep_the_limit_unless_one_tensor_is_larger():
    limit = 4 * ALIGNMENT_BYTES
    weights = {f"w{i}": torch.ones(20 + i) for i in range(10)}
    weights["large"] = torch.ones(1000)
    for bucket in pack_buckets(weights.items(), limit):
        assert bucket.num_bytes <= limit or bucket.names == ("large",)
        assert bucket.num_bytes <= 4000


def test_tensors_are_aligned():
    weights = make_weights()
    (bucket,) = pack_buckets(weights.items(), 10_000)
    starts = [start for start, _ in offsets(bucket.dtypes, bucket.shapes)]
    assert all(start % ALIGNMENT_BYTES == 0 for start in starts)


def test_a_source_may_free_each_tensor_before_the_next():
    """Gathered shards of ZeRO-3 are overwritten when the next tensor is asked for."""
    weights = make_weights()

    def source():
        for name, tensor in weights.items():
            lent = tensor.clone()
            yield name, lent
            lent.zero_()

    buckets = pack_buckets(source(), 200)
    unpacked = dict(pair for bucket in buckets for pair in unpack(bucket))
    assert all(torch.equal(unpacked[name], weights[name]) for name in weights)


def test_a_lent_buffer_is_used_by_every_bucket():
    weights = {f"w{i}": torch.full((16,), float(i)) for i in range(4)}
    buffer = np.zeros(64, dtype=np.uint8)
    seen = []
    for bucket in pack_buckets(weights.items(), 64, buffer):
        assert np.shares_memory(bucket.data, buffer)
        seen += [(name, tensor.clone()) for name, tensor in unpack(bucket)]
    assert [name for name, _ in seen] == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in seen)


def test_a_tensor_larger_than_the_lent_buffer_still_passes():
    weights = {"small": torch.ones(4), "large": torch.arange(100.0), "last": torch.ones(4)}
    buffer = np.zeros(64, dtype=np.uint8)
    unpacked = {
        name: tensor.clone()
        for bucket in pack_buckets(weights.items(), 64, buffer)
        for name, tensor in unpack(bucket)
    }
    assert all(torch.equal(unpacked[name], weights[name]) for name in weights)


def test_a_buffer_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="64 bytes, a bucket 65"):
        list(pack_buckets({"w": torch.ones(1)}.items(), 65, np.zeros(64, dtype=np.uint8)))


def test_pickles_without_a_copy():
    """Ray's object store needs the buffer outside the pickle, and gives it back read-only."""
    (bucket,) = pack_buckets(make_weights().items(), 10_000)
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(bucket, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 1000
    stored = [bytes(buffer.raw()) for buffer in buffers]
    received = pickle.loads(pickled, buffers=stored)
    assert not received.data.flags.writeable
    assert np.shares_memory(received.data, np.frombuffer(stored[0], dtype=np.uint8))
    for (name, tensor), (_, sent) in zip(unpack(received), unpack(bucket), strict=True):
        assert torch.equal(tensor, sent), name


def test_a_bucket_describes_every_tensor():
    data = np.zeros(4, dtype=np.uint8)
    with pytest.raises(ValueError, match="2 names, 1 dtypes and 1 shapes"):
        WeightBucket(names=("a", "b"), dtypes=("float32",), shapes=((1,),), data=data)
    with pytest.raises(ValueError, match="flat uint8"):
        WeightBucket(names=(), dtypes=(), shapes=(), data=data.view(np.float32))


def test_an_unknown_dtype_is_named():
    bucket = WeightBucket(
        names=("a",), dtypes=("float33",), shapes=((1,),), data=np.zeros(4, dtype=np.uint8)
    )
    with pytest.raises(ValueError, match="'float33'"):
        list(unpack(bucket))
