"""What leaves a device, over a fake of DeepSpeed's engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_ray.publish.base import LearnerPart
from rlhf_ray.training.engine.device_states import DeviceStates

MASTERS = ("hp_params", "optim_states")
GRADIENTS = ("lp_grads", "contiguous_grad_buffer")


class FakeEngine:
    """An engine of a stage with one flat group of weights and AdamW's states of it."""

    def __init__(self, stage: int, *, on_host: bool = False) -> None:
        self._stage, self._on_host = stage, on_host
        self.flat = torch.arange(4.0)
        self.moment, self.step = torch.ones(4), torch.tensor(3.0)
        self.optimizer = SimpleNamespace(
            fp32_partitioned_groups_flat=[self.flat],
            optimizer=SimpleNamespace(
                state={self.flat: {"exp_avg": self.moment, "step": self.step}}
            ),
        )
        self.calls: list[Any] = []

    def zero_optimization_stage(self) -> int:
        return self._stage

    def zero_use_cpu_optimizer(self) -> bool:
        return self._on_host

    def offload_states(self, include: tuple[str, ...]) -> None:
        self.calls.append(include)

    def reload_states(self) -> None:
        self.calls.append("reload")


@pytest.mark.parametrize(
    ("stage", "on_host", "keeps_masters", "first", "then"),
    [
        (2, False, False, (*MASTERS, *GRADIENTS), (*MASTERS, *GRADIENTS, "lp_params")),
        # An EMA is published with the weights in high precision in their place.
        (2, False, True, ("optim_states", *GRADIENTS), (*MASTERS, *GRADIENTS, "lp_params")),
        # DeepSpeed itself leaves out what its own offloading keeps on the host.
        (3, True, False, (*MASTERS, *GRADIENTS), (*MASTERS, *GRADIENTS, "lp_params")),
        (3, False, False, GRADIENTS, (*GRADIENTS, "lp_params")),
    ],
)
def test_deepspeed_moves_the_states_first_and_the_weights_last(
    stage, on_host, keeps_masters, first, then
):
    engine = FakeEngine(stage, on_host=on_host)
    states = DeviceStates(engine, keeps_masters=keeps_masters)
    states.offload(LearnerPart.STATES)
    states.offload(LearnerPart.WEIGHTS)
    states.reload(torch.device("cpu"))
    assert engine.calls == [first, then, "reload"]


def test_masters_of_stage_3_move_to_the_same_host_memory_each_time():
    engine = FakeEngine(3)
    states = DeviceStates(engine, keeps_masters=False)
    places = []
    for _ in range(2):
        on_device = (engine.flat.data_ptr(), engine.moment.data_ptr())
        states.offload(LearnerPart.STATES)
        on_host = (engine.flat.data_ptr(), engine.moment.data_ptr())
        assert not {*on_host} & {*on_device}
        places.append(on_host)
        states.offload(LearnerPart.WEIGHTS)
        assert (engine.flat.data_ptr(), engine.moment.data_ptr()) == on_host
        states.reload(torch.device("cpu"))
        assert not {engine.flat.data_ptr(), engine.moment.data_ptr()} & {*on_host}
        assert engine.flat.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert engine.moment.tolist() == [1.0] * 4
    assert places[0] == places[1]


def test_an_ema_keeps_the_weights_in_high_precision_until_the_weights_leave():
    engine = FakeEngine(3)
    states = DeviceStates(engine, keeps_masters=True)
    flat, moment = engine.flat.data_ptr(), engine.moment.data_ptr()
    states.offload(LearnerPart.STATES)
    assert engine.flat.data_ptr() == flat
    assert engine.moment.data_ptr() != moment
    states.offload(LearnerPart.WEIGHTS)
    assert engine.flat.data_ptr() != flat
