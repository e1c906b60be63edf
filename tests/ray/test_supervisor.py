"""Waiting for real actors: results, failures, deaths, deadlines."""

from __future__ import annotations

import time

import psutil
import pytest
import ray

from rlhf_ray.calls import Call
from rlhf_ray.cluster.runtime.supervisor import Supervisor
from rlhf_ray.config.errors import RunFailed
from tests.ray.troupe import NUM_PUPPETS, Troupe


def handles(troupe: Troupe) -> list:
    return [member.handle for member in troupe.members]


def streamed(troupe: Troupe, values: list, *, fail: bool) -> list:
    """What puppet 1 makes of the items that puppet 0 streams."""
    first, second = handles(troupe)
    generator = first.stream.options(num_returns="streaming").remote(values, fail)
    source = troupe.call(0, generator)
    results = []
    for item in troupe.supervisor.stream(source, phase="publish", timeout_s=20):
        results += troupe.wait(troupe.call(1, second.answer.remote(item)))
    return results


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stays_alive(pid: int) -> bool:
    """Whether it has not ended within some time."""
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return is_alive(pid)


def test_results_come_in_the_order_of_the_calls(shared_troupe):
    first, second = handles(shared_troupe)
    slow = shared_troupe.call(0, first.answer.remote("slow", 0.5))
    fast = shared_troupe.call(1, second.answer.remote("fast"))
    assert shared_troupe.wait(slow, fast) == ["slow", "fast"]


def test_actors_have_names_and_processes(shared_troupe):
    assert [str(member.name) for member in shared_troupe.members] == ["puppet_0", "puppet_1"]
    assert ray.get(ray.get_actor("puppet_1").answer.remote(3), timeout=10) == 3
    pids = [member.info.pid for member in shared_troupe.members]
    assert len(set(pids)) == NUM_PUPPETS
    assert all(psutil.pid_exists(pid) for pid in pids)


def test_an_exception_names_the_worker_and_shows_its_log(shared_troupe):
    first, second = handles(shared_troupe)
    message = shared_troupe.failure(
        shared_troupe.call(0, first.answer.remote(1)), shared_troupe.call(1, second.fail.remote())
    )
    headline = message.splitlines()[0]
    assert headline.startswith("puppet_1 failed (phase update, step 7): ValueError: the puppet has")
    assert "a last word" in message
    assert "--- stacks of puppet_0" in message


def test_a_stream_arrives_item_by_item(shared_troupe):
    assert streamed(shared_troupe, ["a", "b"], fail=False) == ["a", "b"]
    assert streamed(shared_troupe, [], fail=False) == []


def test_the_error_of_a_stream_is_that_of_its_source(shared_troupe):
    with pytest.raises(RunFailed, match=r"^puppet_0 failed .*ValueError: the stream has failed"):
        streamed(shared_troupe, ["a"], fail=True)


def test_a_stream_that_fails_for_another_worker_names_that_one(troupe):
    """A rank whose peer dies fails within a gather: the peer is the cause."""
    first, second = handles(troupe)
    source = troupe.call(0, first.stream.options(num_returns="streaming").remote(["a"], True))
    other = troupe.call(1, second.die.remote(1.0))
    with pytest.raises(RunFailed, match=r"^puppet_1 died "):
        list(troupe.supervisor.stream(source, phase="publish", timeout_s=20, others=[other]))


def test_a_payload_is_not_fetched_but_passed_on(shared_troupe):
    first, second = handles(shared_troupe)
    signal, payload = first.two.options(num_returns=2).remote("x")
    call = Call(member=shared_troupe.members[0].name, signal=signal, payload=payload)
    assert shared_troupe.wait(call) == ["x"]
    passed_on = shared_troupe.call(1, second.answer.remote(call.payload))
    assert shared_troupe.wait(passed_on) == [["x"] * 3]


def test_a_streamed_buffer_may_be_used_again(shared_troupe):
    """What the packing of weights into one buffer relies on."""
    first, _ = handles(shared_troupe)
    generator = first.reuse.options(
        num_returns="streaming", _generator_backpressure_num_objects=4
    ).remote(5, 1_000_000)
    source = shared_troupe.call(0, generator)
    items = list(shared_troupe.supervisor.stream(source, phase="publish", timeout_s=20))
    arrays = ray.get(items, timeout=20)
    assert [set(array.tolist()) for array in arrays] == [{0}, {1}, {2}, {3}, {4}]


def test_finished_calls_are_taken_out_once(troupe):
    first, second = handles(troupe)
    slow, fast = (
        troupe.call(0, first.answer.remote(1, 20)),
        troupe.call(1, second.answer.remote(2)),
    )
    pending = troupe.supervisor.pending()
    for call in (slow, fast):
        pending.add(call)
    assert pending.take_done(phase="generate", timeout_s=10) == [(fast, 2)]
    discarded = troupe.call(1, second.fail.remote())
    pending.add(discarded)
    pending.discard(discarded)
    last = troupe.call(1, second.answer.remote(3))
    pending.add(last)
    # The failure comes first, and is nobody's: it was discarded.
    assert pending.take_done(phase="generate", timeout_s=10) == [(last, 3)]
    pending.add(troupe.call(1, second.fail.remote()))
    with pytest.raises(RunFailed, match=r"^puppet_1 failed \(phase generate, step 7\)"):
        pending.take_done(phase="generate", timeout_s=10)


def test_work_is_done_during_a_wait(shared_troupe):
    first, second = handles(shared_troupe)
    slow = shared_troupe.call(0, first.answer.remote("slow", 3.0))
    pending = shared_troupe.supervisor.pending()
    pending.add(shared_troupe.call(1, second.answer.remote("fast", 0.5)))
    found: list = []

    def work() -> None:
        found.extend((value, slow_is_done()) for _, value in pending.take_ready(phase="generate"))

    def slow_is_done() -> bool:
        return bool(ray.wait([slow.signal], timeout=0)[0])

    with shared_troupe.supervisor.meanwhile(work):
        assert shared_troupe.wait(slow) == ["slow"]
    assert found == [("fast", False)]


def test_a_failure_of_what_is_done_meanwhile_ends_the_wait(shared_troupe):
    first, second = handles(shared_troupe)
    slow = shared_troupe.call(0, first.answer.remote("slow", 5.0))
    pending = shared_troupe.supervisor.pending()
    pending.add(shared_troupe.call(1, second.fail.remote()))
    with (
        pytest.raises(RunFailed, match=r"^puppet_1 failed \(phase generate, step 7\)"),
        shared_troupe.supervisor.meanwhile(lambda: pending.take_ready(phase="generate") and None),
    ):
        shared_troupe.wait(slow)
    assert shared_troupe.wait(slow) == ["slow"], "the wait itself can be repeated"


def test_a_death_is_told_from_the_failure_that_it_causes(troupe):
    first, second = handles(troupe)
    message = troupe.failure(
        troupe.call(0, first.fail.remote()), troupe.call(1, second.die.remote(0.5))
    )
    assert message.startswith("puppet_1 died (phase update, step 7)")
    assert "the process is gone" in message


def test_a_late_worker_is_named_with_its_stacks(troupe):
    first, second = handles(troupe)
    started = time.monotonic()
    message = troupe.failure(
        troupe.call(0, first.answer.remote(1)),
        troupe.call(1, second.answer.remote(1, 60)),
        timeout_s=2,
    )
    assert time.monotonic() - started < 20
    assert message.startswith("puppet_1 did not answer in 2 s (phase update, step 7)")
    assert "deadlines.update_s" in message
    stacks = message.split("--- stacks of puppet_1:")[1]
    assert "in answer" in stacks


def test_a_stopped_worker_is_named_and_ended(troupe):
    first, second = handles(troupe)
    message = troupe.failure(
        troupe.call(0, first.answer.remote(1)), troupe.call(1, second.stop.remote()), timeout_s=2
    )
    assert "puppet_1 did not answer" in message
    assert "stopped (SIGSTOP)" in message
    pid = troupe.members[1].info.pid
    troupe.launcher.close(orderly=False)
    assert not stays_alive(pid)


def test_close_ends_what_workers_have_started(troupe):
    child = ray.get(troupe.members[0].handle.spawn.remote(), timeout=20)
    assert is_alive(child)
    troupe.launcher.remember_processes()
    troupe.launcher.close(orderly=True)
    assert not stays_alive(child)
    assert not any(stays_alive(member.info.pid) for member in troupe.members)


def test_a_late_part_of_a_batch_names_the_deadline_and_the_wait(troupe):
    """A wait for one of many answers has what is left of the deadline of all."""
    _, second = handles(troupe)
    supervisor = Supervisor({"generate_s": 30.0})
    for member in troupe.members:
        supervisor.add(member)
    late = troupe.call(1, second.answer.remote(1, 60))
    pending = supervisor.pending()
    pending.add(late)
    with pytest.raises(RunFailed) as caught:
        pending.take_done(phase="generate", timeout_s=2.0096)
    assert str(caught.value).startswith(
        "puppet_1 did not answer in 2.01 s (phase generate, step 0): the deadline is "
        "deadlines.generate_s=30, of which 28 s had passed before\n"
    )
