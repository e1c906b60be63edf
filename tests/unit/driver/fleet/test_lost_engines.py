"""Engines lost in every phase of a run: what goes on, who serves, what is written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.calls import MemberName
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.fleet.accounts import FILE_NAME, num_lost
from rlhf_ray.publish.base import AVERAGE, POLICY
from rlhf_ray.publish.channel_transport import ChannelFailed
from tests.unit.driver.fleet.faulty_engines import START_S, FleetRun

FIRST = [f"e0-r{index}" for index in range(30)]


def events(folder: Path, kind: str) -> list[dict]:
    path = folder / FILE_NAME
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def engine(rank: int, incarnation: int = 1) -> MemberName:
    return MemberName(role="generator", rank=rank, incarnation=incarnation)


def check_batches(run: FleetRun) -> None:
    """Every step trained on its prompts, each once, in the order of an undisturbed run."""
    assert len(run.batches.prompts) == run.num_steps
    assert [prompt for step in run.batches.prompts for prompt in step] == FIRST[: 6 * run.num_steps]


def check_who_served(run: FleetRun) -> None:
    """No engine sampled before it had passed the gate, and none after it was fenced."""
    first_probe: dict[MemberName, int] = {}
    for number, (method, name) in enumerate(run.engines.log):
        if method == "score_sequences":
            first_probe.setdefault(name, number)
        if method == "generate":
            assert first_probe.get(name, number) < number, f"{name} sampled before the gate"


METHODS = (
    "generate",
    "statistics",
    "begin_update",
    "load_bucket",
    "finish_update",
    "score_sequences",
    "weight_version",
    "ping",
)


@pytest.mark.parametrize("number", [2, 3, 6])
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("method", METHODS)
def test_an_engine_lost_in_any_phase(tmp_path, method, how, number):
    run = FleetRun(tmp_path)
    fault = run.kill(1) if how == "kill" else run.stop(1)
    run.on(method, number, fault)
    run.run()
    check_batches(run)
    check_who_served(run)
    assert not run.engines.hooks, "the fault was injected"
    assert run.engines.fenced == [engine(1)]
    (lost,) = events(tmp_path, "engine_lost")
    assert lost["engine"] == "generator_1"
    assert lost["next_engine"] == "generator_1.2"
    assert num_lost(tmp_path) == 1
    rows = run.written.rows
    assert sum(row["recovery/lost_engines"] for row in rows) == 1
    back = events(tmp_path, "engine_back")
    assert len(back) == sum(row["recovery/engines_back"] for row in rows)
    if back:
        assert back[0]["engine"] == "generator_1.2"
        assert back[0]["seconds"] >= run.engines.starts_after_s
        again = sum(row["recovery/groups_issued_again"] for row in rows)
        assert back[0]["groups_issued_again"] == again
        assert ("generate", engine(1, 2)) in run.engines.log or run.waiter.step >= 3


def test_groups_of_a_lost_engine_are_issued_again_once(tmp_path):
    run = FleetRun(tmp_path)
    run.on("generate", 4, run.kill(1))
    run.run()
    # Of six groups the second engine had three.
    (back,) = events(tmp_path, "engine_back")
    assert back["groups_issued_again"] == 3
    asked = Counter(method for method, _ in run.engines.log)
    assert asked["generate"] == 30 + 3
    assert run.batches.versions == [{step} for step in range(5)]
    assert any("generator_1.2 serves" in line for line in run.said)


@pytest.mark.parametrize("method", METHODS)
def test_the_only_engine_is_replaced_while_the_run_waits(tmp_path, method):
    run = FleetRun(tmp_path, num_engines=1)
    run.on(method, 3, run.kill(0))
    run.run()
    check_batches(run)
    check_who_served(run)
    assert len(events(tmp_path, "engine_lost")) == len(events(tmp_path, "engine_back")) == 1
    # The weights are those that the lost engine had, or newer ones: never those of its files.
    assert all(versions == {step} for step, versions in enumerate(run.batches.versions))


def test_what_a_fenced_engine_answers_late_is_not_looked_at(tmp_path):
    run = FleetRun(tmp_path)
    run.on("generate", 4, run.stop(1))
    # Continued (SIGCONT) as soon as it has been given up.
    run.on("begin_update", 1, run.engines.hung.clear)
    run.run()
    check_batches(run)
    sampled = [name for method, name in run.engines.log if method == "generate"]
    assert sampled.count(engine(1)) == 3
    (lost,) = events(tmp_path, "engine_lost")
    assert "did not answer" in lost["what"]
    assert len(events(tmp_path, "engine_lost")) == 1


def test_a_silent_engine_is_suspect_first_and_may_answer(tmp_path):
    """A short silence costs it new requests only."""
    run = FleetRun(tmp_path)
    run.transport.open(run.learner, run.fleet.muster(takes_new=True))
    run.publisher.check_loaded(0)
    assert run.fleet.serving == (0, 1)
    run.stop(1)()
    for _ in range(14):
        run.waiter.pass_second()
    assert run.fleet.serving == (0,)
    run.engines.hung.clear()
    run.waiter.pass_second()
    assert run.fleet.serving == (0, 1)
    assert run.engines.fenced == []


def test_time_in_which_the_driver_was_away_is_not_the_engines_silence(tmp_path):
    run = FleetRun(tmp_path)
    run.transport.open(run.learner, run.fleet.muster(takes_new=True))
    run.publisher.check_loaded(0)
    run.stop(1)()
    run.waiter.pass_second()
    run.waiter.now += 1000.0
    run.waiter.look()
    assert run.engines.fenced == []
    for _ in range(25):
        run.waiter.pass_second()
    assert run.engines.fenced == [engine(1)]


def test_past_the_budget_the_run_ends_with_the_first_cause(tmp_path):
    run = FleetRun(tmp_path, max_restarts=1)
    run.on("generate", 4, run.kill(1))
    run.on("generate", 20, run.kill(0))
    with pytest.raises(RunFailed) as caught:
        run.run()
    message = str(caught.value)
    assert message.startswith("generator_0 died (phase generate, step ")
    assert "recovery.max_restarts=1" in message
    assert "The first loss was: generator_1 died (phase generate, step 0): killed" in message
    assert len(events(tmp_path, "engine_lost")) == 1, "the last one is the run's failure"


def test_fewer_engines_than_are_wanted_end_the_run(tmp_path):
    run = FleetRun(tmp_path, num_engines=3, min_engines=2)
    run.engines.starts_after_s = 1e6
    run.on("generate", 4, run.kill(1))
    run.on("generate", 5, run.kill(2))
    with pytest.raises(RunFailed, match=r"be left: 1, fewer than recovery\.min_engines=2"):
        run.run()


def test_a_replacement_that_does_not_start_counts_as_lost(tmp_path):
    run = FleetRun(tmp_path, num_engines=1, max_restarts=2)
    run.engines.starts_after_s = 2 * START_S
    run.on("generate", 4, run.kill(0))
    with pytest.raises(RunFailed, match=r"generator_0\.3 did not start within deadlines.start_s"):
        run.run()
    assert run.engines.fenced == [engine(0), engine(0, 2)]


@pytest.mark.parametrize("lies", [False, True])
def test_a_replacement_without_the_publish_never_serves(tmp_path, lies):
    """The publish to it is dropped: the gate refuses it, and takes the next one."""
    run = FleetRun(tmp_path)
    run.engines.drops.add(engine(1, 2))
    if lies:
        run.engines.lies.add(engine(1, 2))
    run.on("generate", 4, run.kill(1))
    run.run()
    check_batches(run)
    check_who_served(run)
    assert ("generate", engine(1, 2)) not in run.engines.log
    assert run.engines.fenced == [engine(1), engine(1, 2)]
    lost = events(tmp_path, "engine_lost")
    assert [event["engine"] for event in lost] == ["generator_1", "generator_1.2"]
    assert "refused by the gate" in lost[1]["what"]
    expected = "differs from the learner" if lies else "reports weights of version 0"
    assert expected in lost[1]["reason"]


def test_an_engine_that_serves_and_fails_the_gate_ends_the_run(tmp_path):
    run = FleetRun(tmp_path)
    run.engines.drops.add(engine(1))
    run.engines.lies.add(engine(1))
    with pytest.raises(RunFailed, match="engine 1 differs from the learner by 2 nats"):
        run.run()


def test_batches_in_flight_survive_a_loss(tmp_path):
    """Asynchronous: a loss may be noticed in training, with no engine left."""
    run = FleetRun(tmp_path, num_engines=1, max_staleness=2)
    run.on("generate", 9, run.kill(0))
    run.on("generate", 40, run.kill(0))
    run.run()
    check_batches(run)
    check_who_served(run)
    assert len(events(tmp_path, "engine_lost")) == 2


@pytest.mark.parametrize("num_engines", [1, 2])
def test_losses_and_interruptions_lose_no_group(tmp_path, num_engines):
    """Asynchronous, with engines lost before and after checkpoints, and two interruptions."""
    trained: dict[int, tuple[str, ...]] = {}

    def interrupt() -> None:
        raise KeyboardInterrupt

    def live(resume: int, losses: list[int], end: int | None) -> FleetRun:
        run = FleetRun(
            tmp_path, num_engines=num_engines, num_steps=14, max_staleness=2, every_steps=1
        )
        if resume:
            run.resume(resume)
        for number in losses:
            run.on("generate", number, run.kill(0))
        if end is None:
            run.run()
        else:
            run.on("begin_update", end * num_engines + 1, interrupt)
            with pytest.raises(KeyboardInterrupt):
                run.run()
        assert run.engines.fenced, "an engine was lost"
        trained.update(enumerate(run.batches.prompts, start=resume))
        return run

    live(0, [9, 22], 4)
    first = max(int(path.name[-6:]) for path in (tmp_path / "checkpoints").iterdir())
    second = live(first, [3], 3)
    last = max(int(path.name[-6:]) for path in (tmp_path / "checkpoints").iterdir())
    assert 0 < first < last < 14
    third = live(last, [3], None)
    assert [name for step in range(14) for name in trained[step]] == [
        f"e0-r{index}" for index in range(84)
    ]
    for run in (second, third):
        assert "groups that waited in the checkpoint go on" in run.said[0]


class Channel:
    """A transport that fails as a whole when one end is lost, and must be opened again then.

    Attributes:
        opened: names of the receivers of every opening.
        hangs: an end that does not even say that it failed.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.opened: list[list[str]] = []
        self.hangs: MemberName | None = None
        self.run: FleetRun | None = None

    def open(self, source: Any, receivers: Any) -> None:
        self.receivers = receivers
        self.opened.append([str(name) for name in receivers.names])
        self.inner.open(source, receivers)

    def send(self, version: int, *, what: str = POLICY) -> None:
        assert self.run is not None
        if self.hangs in self.receivers.names:
            assert self.hangs is not None
            raise ChannelFailed("generator_1: no answer while publishing", [self.hangs])
        self.inner.send(version, what=what)
        lost = [name for name in self.receivers.names if name in self.run.waiter.lost]
        if lost:
            raise ChannelFailed(f"publishing version {version} failed: {lost[0]}")

    def close(self) -> None: ...


def channel_run(folder: Path) -> tuple[FleetRun, Channel]:
    channels: list[Channel] = []

    def wrap(inner: Any) -> Channel:
        channels.append(Channel(inner))
        return channels[0]

    run = FleetRun(folder, wrap=wrap)
    channels[0].run = run
    return run, channels[0]


def test_a_channel_is_opened_again_with_the_engines_that_are_left(tmp_path):
    run, channel = channel_run(tmp_path)
    run.engines.starts_after_s = 3.0
    run.on("load_bucket", 5, run.kill(1))
    run.run()
    check_batches(run)
    check_who_served(run)
    assert channel.opened == [
        ["generator_0", "generator_1"],
        ["generator_0"],
        ["generator_0", "generator_1.2"],
    ]


def test_an_end_that_says_nothing_is_lost(tmp_path):
    """Its actor answers, its vLLM process does not: the channel alone shows it."""
    run, channel = channel_run(tmp_path)
    run.on("generate", 10, lambda: setattr(channel, "hangs", engine(1)))
    run.run()
    check_batches(run)
    (lost,) = events(tmp_path, "engine_lost")
    assert lost["what"] == "generator_1 did not answer in a publish"


def test_a_failure_of_the_source_is_no_loss(tmp_path):
    run, channel = channel_run(tmp_path)
    learner = MemberName(role="learner", rank=0)

    def fail(*_: Any, **__: Any) -> None:
        raise ChannelFailed("learner_0: no answer while publishing", [learner])

    run.on("generate", 10, lambda: setattr(channel, "send", fail))
    with pytest.raises(RunFailed, match=r"^learner_0: no answer"):
        run.run()
    assert run.engines.fenced == []


def test_a_dead_source_is_named_though_an_engine_is_lost_meanwhile(tmp_path):
    run, channel = channel_run(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        run.kill(1)()
        run.waiter.find_dead(engine(1))
        raise RunFailed("learner_0 died")

    run.on("generate", 10, lambda: setattr(channel, "send", fail))
    with pytest.raises(RunFailed, match=r"^learner_0 died$"):
        run.run()
    assert run.engines.fenced == [engine(1)]


def test_an_average_is_sent_again_to_the_only_engine(tmp_path):
    """The gate sees the policy, and the engine ends with what it had."""
    run = FleetRun(tmp_path, num_engines=1, num_steps=2)
    run.run()
    sent: list[str] = []
    buckets = run.learner.weight_buckets

    def noted(bucket_bytes: int, *, what: str = POLICY) -> Any:
        sent.append(what)
        return buckets(bucket_bytes, what=what)

    run.learner.weight_buckets = noted
    run.transport.send(2, what=AVERAGE)
    run.kill(0)()
    run.waiter.look()
    run.waiter.find_dead(engine(0))
    assert run.fleet.serving == ()
    run.fleet.ensure_serving()
    assert sent == [AVERAGE, POLICY, AVERAGE]
    assert run.fleet.serving == (0,)


@pytest.mark.parametrize("num_engines", [1, 2])
@pytest.mark.parametrize("when", ["before", "begin_update", "load_bucket", "finish_update"])
def test_an_average_finds_no_engine_with_weights(tmp_path, when, num_engines):
    """All are lost before the send or in it: the policy and the gate come first."""
    run = FleetRun(tmp_path, num_engines=num_engines, num_steps=2).run()
    sent: list[str] = []
    buckets = run.learner.weight_buckets

    def noted(bucket_bytes: int, *, what: str = POLICY) -> Any:
        sent.append(what)
        return buckets(bucket_bytes, what=what)

    def kill_all() -> None:
        for rank in range(num_engines):
            run.kill(rank)()
            run.waiter.find_dead(engine(rank))

    run.learner.weight_buckets = noted
    if when == "before":
        kill_all()
    else:
        run.on(when, run.engines.asked[when] + 1, kill_all)
    run.transport.send(2, what=AVERAGE)
    assert sent == [AVERAGE] * (when != "before") + [POLICY, AVERAGE]
    assert run.fleet.serving == tuple(range(num_engines))
    check_who_served(run)


class ClosedByCalls(Channel):
    """Its ends are asked to close, as those of a channel."""

    def close(self) -> None:
        assert self.run is not None
        calls = [self.run.engines.call("close", name) for name in self.receivers.names]
        self.run.waiter.results(calls, phase="publish", timeout_s=60.0)


def test_an_engine_lost_after_the_last_step_costs_nothing(tmp_path):
    """With the budget used up: neither the look-outs nor the closing of the channel fail."""
    channels: list[ClosedByCalls] = []

    def wrap(inner: Any) -> ClosedByCalls:
        channels.append(ClosedByCalls(inner))
        return channels[0]

    run = FleetRun(tmp_path, max_restarts=1, wrap=wrap)
    channels[0].run = run
    run.on("generate", 4, run.kill(0))
    run.run()
    pings = run.engines.asked["ping"]
    run.fleet.retire()
    run.stop(0)()
    run.kill(1)()
    for _ in range(100):  # Waits of the last checkpoint and of the model.
        run.waiter.pass_second()
    assert run.engines.asked["ping"] == pings
    run.transport.close()
    assert run.engines.asked["close"] == 2
    assert run.engines.fenced == [engine(0)]
    assert num_lost(tmp_path) == 1
    assert run.said[-1] == "generator_1 died after the last step: the run needs it no more"


def test_a_wait_for_an_engine_that_takes_weights_ends(tmp_path):
    """Whatever hides the limit of a single start."""
    run = FleetRun(tmp_path, num_engines=1, num_steps=1, max_restarts=1).run()
    run.engines.starts_after_s = 1e9
    run.kill(0)()
    run.waiter.find_dead(engine(0))
    run.fleet.look = lambda: None
    began = run.waiter.now
    with pytest.raises(RunFailed, match=r"no engine could take weights for 120 s.*generator_0\.2"):
        run.fleet.muster(takes_new=True)
    assert run.waiter.now - began < 2 * (START_S + 20.0)


def test_an_average_goes_to_no_engine_that_the_gate_has_not_seen(tmp_path):
    run = FleetRun(tmp_path, num_steps=1)
    run.engines.starts_after_s = 0.0
    run.run()
    run.kill(1)()
    run.waiter.find_dead(engine(1))
    run.waiter.look()
    run.transport.send(1, what=AVERAGE)
    assert run.fleet.receivers == [engine(0)]
    assert run.fleet.serving == (0,)
