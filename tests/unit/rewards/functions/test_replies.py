"""Replies of the process of the functions: nothing that a function writes becomes a reward."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.functions.channel import Channel, MessageTooLong
from rlhf_ray.rewards.functions.replies import Expected, UnexpectedReply, read_reply
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.rewards.protocol import StepRewards

pytestmark = pytest.mark.unit_slow

HOSTILE = str(Path(__file__).parent / "hostile_rewards.py")
DUE = Expected(call="c0ffee", item=1, response="ab")


def reply(**fields: Any) -> bytes:
    return json.dumps({"call": "c0ffee", "item": 1, **fields}).encode()


@pytest.mark.parametrize(
    "response",
    ["old form", "not json", "a list", "nested", "no value", "huge"],
)
def test_a_faked_message_fails_its_own_sample_and_no_other(
    make_worker, make_group, response: str
) -> None:
    worker = make_worker(f"{HOSTILE}:fakes")
    group, summary = worker.score(make_group("a", response, "b", "c"))
    assert (group.sample_indices, group.rewards.tolist()) == ((0, 2, 3), [1.0] * 3)
    (failure,) = summary.failures
    assert (failure.sample_index, failure.kind) == (1, FailureKind.REWARD_PROTOCOL)
    assert "socket of that process, which has been replaced" in failure.message
    group, _ = worker.score(make_group("d"))
    assert group.rewards.tolist() == [1.0]


def test_a_message_between_two_calls_is_never_read(make_worker, make_group) -> None:
    worker = make_worker(f"{HOSTILE}:fakes")
    worker.score(make_group("later"))
    time.sleep(0.5)
    group, summary = worker.score(make_group("a", "b"))
    assert (group.rewards.tolist(), summary.failures) == ([1.0, 1.0], ())


def test_a_reply_for_another_sample_is_refused_even_with_the_secret(
    make_worker, make_group
) -> None:
    worker = make_worker(f"{HOSTILE}:steals_the_call")
    group, summary = worker.score(make_group("thief", "victim"))
    assert (group.sample_indices, group.rewards.tolist()) == ((1,), [1.0])
    assert summary.failures[0].kind is FailureKind.REWARD_PROTOCOL
    assert "a reply to item 1 where item 0 was due" in summary.failures[0].message


def test_checks_that_a_function_has_patched_are_made_again(make_worker, make_group) -> None:
    _, summary = make_worker(f"{HOSTILE}:patches").score(make_group("a"))
    assert summary.failures[0].kind is FailureKind.REWARD_NOT_FINITE
    assert "it returned nan" in summary.failures[0].message


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        ("drip", FailureKind.REWARD_TIMEOUT, "it took longer than reward.timeout_s, 1 s"),
        ("closes", FailureKind.REWARD_WORKER_LOST, "it closed its socket, or its keeper was ended"),
    ],
)
def test_a_socket_that_is_dripped_into_or_closed_is_given_up(
    make_worker, make_group, response: str, kind: FailureKind, message: str
) -> None:
    worker = make_worker(f"{HOSTILE}:fakes", timeout_s=1.0)
    group, summary = worker.score(make_group(response, "a"))
    assert group.rewards.tolist() == [1.0]
    (failure,) = summary.failures
    assert failure.kind is kind
    assert message in failure.message


def test_replies_are_read() -> None:
    assert read_reply(reply(value=1.5), DUE) == 1.5
    assert read_reply(reply(rewards=[1, 2.0], ends=[1, 2]), DUE) == StepRewards(
        rewards=(1.0, 2.0), ends=(1, 2)
    )
    assert read_reply(reply(failed="limit", message="m" * 9999), DUE) == ItemFailure(
        kind=FailureKind.REWARD_LIMIT, message="m" * 4000
    )


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"value": float("nan")}, FailureKind.REWARD_NOT_FINITE, "it returned nan"),
        ({"value": 10**400}, FailureKind.REWARD_NOT_FINITE, "it returned inf"),
        ({"value": "1"}, FailureKind.REWARD_ERROR, "it returned '1' (str), not a number"),
        ({"value": None}, FailureKind.REWARD_ERROR, "it returned None"),
        ({"rewards": [1.0], "ends": [9]}, FailureKind.REWARD_ERROR, "ends[0] is 9"),
        ({"rewards": ["1"], "ends": [1]}, FailureKind.REWARD_ERROR, "rewards[0]"),
        ({"rewards": [], "ends": []}, FailureKind.REWARD_ERROR, "0 rewards"),
    ],
)
def test_values_are_checked_again(fields: dict, kind: FailureKind, message: str) -> None:
    outcome = read_reply(reply(**fields), DUE)
    assert isinstance(outcome, ItemFailure)
    assert outcome.kind is kind
    assert message in outcome.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"[" * 100_000,
        b"1" * 5000,
        b"[]",
        b"7",
        b"{}",
        b'{"call": "other", "item": 1, "value": 1.0}',
        reply(item=0, value=1.0),
        reply(item=True, value=1.0),
        reply(item="1", value=1.0),
        reply(item=[1], value=1.0),
        reply(),
        reply(rewards=[1.0]),
        reply(rewards={"0": 1.0}, ends=[1]),
        reply(failed="error"),
        reply(failed="generation_error", message="x"),
        reply(failed=["error"], message="x"),
        reply(failed="error", message=1),
    ],
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        read_reply(data, DUE)


def test_a_channel_bounds_length_and_time() -> None:
    left, right = socket.socketpair()
    ours, theirs = Channel(left), Channel(right)
    assert ours.is_quiet()
    long = b"x" * 3_000_000
    sender = threading.Thread(target=theirs.send, args=(long,))
    sender.start()
    assert ours.receive(max_bytes=3_000_000, timeout_s=30) == long
    sender.join()
    for message in (b"", b"a", b"bc"):
        theirs.send(message)
    assert [ours.receive() for _ in range(3)] == [b"", b"a", b"bc"]
    with pytest.raises(TimeoutError):
        ours.receive(timeout_s=0.01)
    theirs.send(b"four")
    assert not ours.is_quiet()
    with pytest.raises(MessageTooLong, match="4 bytes"):
        ours.receive(max_bytes=3)
    with pytest.raises(TimeoutError):
        theirs.send(b"x" * 50_000_000, timeout_s=0.05)
    theirs.close()
    with pytest.raises(ConnectionError):
        ours.send(b"x" * 50_000_000)
    ours.close()
