"""The parts of channels that need a GPU, over fakes of NCCL and of CUDA's handles."""

from __future__ import annotations

import base64
import json
import pickle
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore
from torch.distributed import distributed_c10d as c10d

from rlhf_ray.publish import device_memory, group
from rlhf_ray.publish.channel import ChannelSettings, PeerLost
from rlhf_ray.publish.device_memory import MappedDeviceMemory
from rlhf_ray.publish.group import WeightGroup
from rlhf_ray.publish.messages import Messages

GPU = torch.device("cuda", 3)
SETTINGS = ChannelSettings(
    kind="collective",
    name="test",
    addresses=(("127.0.0.1", 1),),
    workers=(2,),
    first_worker=0,
    specs=(("w", "float32", (4,)),),
    bucket_bytes=64,
    timeout_s=0.4,
)


class FakeOptions:
    def __init__(self) -> None:
        self.config = SimpleNamespace(blocking=1)
        self._timeout = timedelta(0)


class FakeNccl:
    """A group whose broadcasts are done after a number of looks; None: never."""

    Options = FakeOptions

    def __init__(self, store: Any, rank: int, size: int, options: FakeOptions) -> None:
        self.rank, self.size, self.options = rank, size, options
        self.connected: torch.device | None = None
        self.aborted = False
        self.looks: int | None = 3
        self.waited = 0

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.connected = device

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> FakeNccl:
        assert (options.rootRank, options.asyncOp) == (0, True)
        return self

    def is_completed(self) -> bool:
        if self.looks is None:
            return False
        self.looks -= 1
        return self.looks <= 0

    def wait(self, timeout: timedelta) -> None:
        self.waited += 1

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def joined(monkeypatch) -> tuple[WeightGroup, FakeNccl, Messages]:
    monkeypatch.setattr(c10d, "ProcessGroupNCCL", FakeNccl, raising=False)
    messages = Messages(HashStore(), SETTINGS)
    made = WeightGroup(messages, 2, SETTINGS, GPU)
    return made, made._group, messages


def test_nccl_is_asked_not_to_block_and_its_watchdog_comes_after_us(joined):
    _, nccl, _ = joined
    assert (nccl.rank, nccl.size, nccl.connected) == (2, 3, GPU)
    assert nccl.options.config.blocking == 0
    assert nccl.options._timeout.total_seconds() > 2 * SETTINGS.timeout_s


def test_a_broadcast_is_waited_for_by_looking(joined):
    made, nccl, _ = joined
    work = made.broadcast(torch.zeros(4, dtype=torch.uint8))
    assert made.failure_of(work) == ""
    # The stream waits, too: the load that follows must not run before the broadcast.
    assert (nccl.looks, nccl.waited) == (0, 1)


def test_a_broadcast_with_a_dead_peer_ends_at_our_deadline(joined):
    made, nccl, _ = joined
    nccl.looks = None
    work = made.broadcast(torch.zeros(4, dtype=torch.uint8))
    started = time.monotonic()
    assert "did not pass within 0.4 s" in made.failure_of(work)
    assert 0.4 <= time.monotonic() - started < 5
    # Its `wait` would never return.
    assert nccl.waited == 0
    made.leave()
    assert nccl.aborted
    with pytest.raises(PeerLost, match="has left the channel"):
        made.broadcast(torch.zeros(4, dtype=torch.uint8))


def test_the_failure_of_another_end_is_seen_while_nccl_hangs(joined, monkeypatch):
    monkeypatch.setattr(group, "LOOK_S", 0.05)
    made, nccl, messages = joined
    nccl.looks = None
    messages.fail()
    work = made.broadcast(torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(PeerLost, match="another end has failed"):
        made.failure_of(work)


def handle(gpu: str, *, kept: bool) -> str:
    # The learner calls its only GPU number 0.
    arguments = ("tensor", 1, 2, 3, "storage", "dtype", 0, "handle")
    text = base64.b64encode(pickle.dumps(arguments)).decode()
    return json.dumps({"gpu": gpu, "handle": text, "kept": kept})


def test_a_handle_is_opened_on_this_process_number_of_the_gpu(monkeypatch):
    monkeypatch.setattr(device_memory, "gpu_uuid", lambda device: f"uuid of {device.index}")
    opened = []

    def rebuild(*arguments: Any) -> torch.Tensor:
        opened.append(arguments)
        return torch.zeros(4, dtype=torch.uint8)

    monkeypatch.setattr("torch.multiprocessing.reductions.rebuild_cuda_tensor", rebuild)
    memory = MappedDeviceMemory(GPU)
    kept, once = handle("uuid of 3", kept=True), handle("uuid of 3", kept=False)
    first = memory.map(kept)
    assert memory.map(kept) is first
    assert opened == [("tensor", 1, 2, 3, "storage", "dtype", 3, "handle")]
    memory.map(once)
    memory.map(once)
    assert len(opened) == 3


def test_memory_of_another_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(device_memory, "gpu_uuid", lambda device: "mine")
    with pytest.raises(PeerLost, match=r"on the GPU theirs, this worker.s on mine.*object_store"):
        MappedDeviceMemory(GPU).map(handle("theirs", kept=True))


def test_torch_takes_the_device_where_we_put_it():
    """The place of the device among the arguments, in the torch that is installed."""
    import inspect

    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    names = list(inspect.signature(rebuild_cuda_tensor).parameters)
    assert names[device_memory._DEVICE_ARGUMENT] == "storage_device"
