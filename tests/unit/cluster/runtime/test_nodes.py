"""Nodes that were lost: by Ray's word, or because their raylet takes no connection."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

import pytest
import ray
from ray.exceptions import RaySystemError

from rlhf_ray.cluster.runtime import nodes
from rlhf_ray.cluster.runtime.nodes import LostNode, lost_nodes, lost_words


def row(node_id: str, port: int, *, alive: bool = True, host: str = "h1", **more: Any) -> dict:
    """One node as `ray.nodes()` of Ray 2.60 has it."""
    return {
        "NodeID": node_id,
        "Alive": alive,
        "NodeManagerAddress": "127.0.0.1",
        "NodeManagerHostname": host,
        "NodeManagerPort": port,
        **more,
    }


@pytest.fixture
def listener():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port on which nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


@pytest.fixture
def rows(monkeypatch) -> list[dict]:
    """Ray's table of nodes."""
    table: list[dict] = []
    monkeypatch.setattr(ray, "nodes", lambda: table)
    return table


def test_a_node_whose_raylet_listens_is_there(rows, listener):
    rows.append(row("a", listener))
    assert lost_nodes({"a"}) == []


def test_a_raylet_that_takes_no_connection_is_lost_although_ray_takes_it_for_alive(
    rows, listener, closed
):
    rows += [row("a", listener), row("b", closed, host="h2")]
    assert lost_nodes({"a", "b"}) == [
        LostNode(
            node_id="b",
            name="127.0.0.1 (h2)",
            reason=f"its raylet at 127.0.0.1:{closed} cannot be reached: Connection refused",
        )
    ]


def test_a_raylet_that_is_silent_is_lost(rows, monkeypatch):
    """Its queue of connections is full, so that the kernel leaves the next ones unanswered."""
    monkeypatch.setattr(nodes, "_CONNECT_S", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as server:
        port = server.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))):
            rows.append(row("a", port, host=""))
            [lost] = lost_nodes({"a"})
    assert lost.name == "127.0.0.1"
    assert lost.reason.endswith("cannot be reached: no answer within 0.2 s")


def test_the_word_of_ray(rows, listener):
    why = "health check failed due to missing too many heartbeats"
    rows.append(row("a", listener, alive=False, DeathReasonMessage=why))
    rows.append(row("b", listener, alive=False))
    assert [node.reason for node in lost_nodes({"a", "b"})] == [
        f"Ray: {why}",
        "Ray: dead, without a reason",
    ]


def test_a_node_without_a_worker_of_the_run_may_be_lost(rows, closed):
    rows += [row("a", closed), row("b", closed, alive=False)]
    assert lost_nodes({"c"}) == []


def test_a_gcs_that_does_not_answer_names_no_node(monkeypatch):
    def fail() -> None:
        raise RaySystemError("the GCS is gone")

    monkeypatch.setattr(ray, "nodes", fail)
    assert lost_nodes({"a"}) == []


def test_words():
    first = LostNode(node_id="a", name="10.0.0.1 (h1)", reason="Ray: no heartbeat")
    second = LostNode(node_id="b", name="10.0.0.2", reason="unreachable")
    what, why = lost_words([first], {"a": ["learner_1", "generator_0"], "b": ["reward_0"]})
    assert what == "node 10.0.0.1 (h1) was lost"
    assert why.startswith("10.0.0.1 (h1) ran generator_0, learner_1 (Ray: no heartbeat). See ")
    assert why.endswith("resume=auto goes on from the last checkpoint")
    what, why = lost_words([first, second], {"a": ["x_0"], "b": [f"r_{i:02}" for i in range(14)]})
    assert what == "nodes 10.0.0.1 (h1) and 10.0.0.2 were lost"
    assert "; 10.0.0.2 ran r_00, r_01, " in why
    assert "r_11 and 2 more (unreachable)" in why
