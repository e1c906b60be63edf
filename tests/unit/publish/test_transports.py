"""The table of transports: its choices, and the one that `auto` takes."""

from __future__ import annotations

import dataclasses

import pytest

from rlhf_ray.config.groups.runtime import PublishConfig
from rlhf_ray.config.setting import setting_of
from rlhf_ray.publish.base import TransferSettings
from rlhf_ray.publish.transports import (
    AUTO,
    COLLECTIVE,
    IPC,
    OBJECT_STORE,
    TRANSPORTS,
    Placed,
    channel_ends,
    chosen_transport,
)
from rlhf_ray.testing.fake_waiter import InProcessWaiter


def placed(nodes: int, learner: float, engine: float, colocated: bool, adapter: bool = False):
    return Placed(
        num_nodes=nodes,
        learner_gpus=learner,
        engine_gpus=engine,
        is_colocated=colocated,
        sends_adapter=adapter,
    )


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (placed(1, 0, 0, False), OBJECT_STORE),
        (placed(1, 0, 0, True), IPC),
        (placed(3, 0, 0, True), COLLECTIVE),
        (placed(3, 0, 0, False), COLLECTIVE),
        (placed(1, 1, 1, False), COLLECTIVE),
        (placed(8, 1, 1, True), IPC),
        # Two of NCCL's members may be on one GPU; or one has none.
        (placed(1, 0.5, 0.5, False), OBJECT_STORE),
        (placed(1, 1, 0.5, False), OBJECT_STORE),
        (placed(1, 1, 0, False), OBJECT_STORE),
        (placed(2, 0, 1, False), OBJECT_STORE),
        (placed(3, 1, 1, True, adapter=True), OBJECT_STORE),
    ],
)
def test_auto(where, expected):
    assert chosen_transport(AUTO, where) == expected


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_name_is_taken_as_it_is(name):
    assert chosen_transport(name, placed(1, 0, 0, False)) == name


def test_the_table_has_every_choice_of_the_configuration():
    (field,) = [f for f in dataclasses.fields(PublishConfig) if f.name == "transport"]
    declared = setting_of(field)
    assert declared is not None
    assert {AUTO, *TRANSPORTS} == set(declared.choices)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_every_row_is_whole(name):
    row = TRANSPORTS[name]
    settings = TransferSettings(bucket_bytes=1, phase="publish", timeout_s=1.0)
    transport = row.make(InProcessWaiter(), settings)
    assert all(callable(method) for method in (transport.open, transport.send, transport.close))
    if row.ends is not None:
        ends = channel_ends(name)
        assert callable(ends.open_sender)
        assert callable(ends.open_receiver)
