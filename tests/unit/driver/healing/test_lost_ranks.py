"""Ranks of learner and critic lost in every phase: the run ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.calls import MemberName
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.fleet.accounts import ROLE_LOST, num_lost
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.losses import Lost
from tests.unit.driver.fleet.test_lost_engines import events
from tests.unit.driver.healing.mortal_ranks import HealedRun

STEPS = 5


def without_recovery(run: HealedRun) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(("recovery/", "time/"))}
        for row in run.written.rows
    ]


def outcome(run: HealedRun) -> tuple[Any, ...]:
    """All that a loss must not change: metrics, samples, and what the roles have learnt."""
    learnt = [rank.learnt for rank in run.ranks]
    engines = {name: run.engines.weights[name] for name in run.engines.names}
    sampled = run.engines.asked["generate"]
    return (
        without_recovery(run),
        run.batches.prompts,
        run.batches.versions,
        learnt,
        engines,
        sampled,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[..., tuple[Any, ...]]:
    """The outcome of a run without a loss, by its settings."""

    @functools.cache
    def run_once(**settings: Any) -> tuple[Any, ...]:
        run = HealedRun(tmp_path_factory.mktemp("undisturbed"), num_steps=STEPS, **settings)
        run.run()
        assert run.num_starts == 0
        assert [row["recovery/lost_ranks"] for row in run.written.rows] == [0.0] * STEPS
        return outcome(run)

    return run_once


def check_accounts(run: HealedRun, *workers: str, restarts: int | None = None) -> None:
    """As many events as faults, in the file, the metrics and the words."""
    restarts = len(workers) if restarts is None else restarts
    assert [event["worker"] for event in events(run.folder, "role_lost")] == list(workers)
    assert len(events(run.folder, "role_back")) == restarts
    assert num_lost(run.folder, ROLE_LOST) == len(workers)
    rows = run.written.rows
    assert sum(row["recovery/lost_ranks"] for row in rows) == len(workers)
    assert sum(row["recovery/training_restarts"] for row in rows) == restarts
    assert sum("start again, and the run goes on" in text for text in run.said) == len(workers)
    assert not run.engines.hooks, "the fault was injected"


PHASES = [
    (rank, method, "update" if method == "update" else phase)
    for rank, methods in (
        ("learner", {"weight_buckets": "publish", "score_sequences": "publish"}),
        ("critic", {}),
    )
    for method, phase in {
        "score": "reference",
        "update": "update",
        "take_state": "",
        "save_checkpoint": "checkpoint",
        **methods,
    }.items()
]


CASES = [
    (rank, method, phase, number, snapshot_every)
    for rank, method, phase in PHASES
    for number in (1, 2)
    for snapshot_every in (0, 1, 3)
    # In five steps there are not so many snapshots.
    if method != "take_state" or number <= (0, 5, 0, 1)[snapshot_every]
]


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize(("role", "method", "phase", "number", "snapshot_every"), CASES)
def test_a_rank_lost_in_any_phase(
    tmp_path, undisturbed, role, method, phase, how, number, snapshot_every
):
    settings = {"snapshot_every": snapshot_every, "checkpoint_every": 2}
    expected = undisturbed(**settings)
    run = HealedRun(tmp_path, num_steps=STEPS, **settings)
    place = 0 if role == "learner" else 1
    fault = run.kill_rank(place) if how == "kill" else run.stop_rank(place)
    # The gate asks the learner once before the first step, when no loss is borne.
    run.on(f"{role} {method}", number + (method == "score_sequences"), fault)
    run.run()
    assert outcome(run) == expected
    check_accounts(run, f"{role}_0")
    (lost,) = events(tmp_path, "role_lost")
    assert lost["role"] == role
    assert not phase or lost["phase"] == phase
    (back,) = events(tmp_path, "role_back")
    assert back["workers"] == ["critic_0.2", "learner_0.2"]
    assert back["in_place_of"] == [f"{role}_0"]


def test_ranks_that_end_with_a_lost_one_are_no_losses_of_their_own(tmp_path, undisturbed):
    """Their calls fail a moment later, often in the same wait: of two ranks in a publish, say."""
    settings = {"snapshot_every": 1, "checkpoint_every": 2}
    run = HealedRun(tmp_path, num_steps=STEPS, **settings)
    trained = run.trained
    assert isinstance(trained, TrainedRoles)
    lose, answers = trained.lose, list[tuple[bool, str]]()

    def losing_both(lost: Lost) -> str:
        words = lose(lost)
        other = dataclasses.replace(lost, member=MemberName(role="critic", rank=0))
        answers.append((trained.replaces(other.member), lose(other)))
        return words

    trained.lose = losing_both
    run.on("learner update", 2, run.kill_rank(0))
    run.run()
    assert answers == [(True, "")]
    assert outcome(run) == undisturbed(**settings)
    check_accounts(run, "learner_0")


def lost_in_update(folder: Path, number: int, **settings: Any) -> dict[str, Any]:
    """What brought the learner back that was lost in this update."""
    run = HealedRun(folder, num_steps=STEPS, **settings)
    run.on("learner update", number, run.kill_rank(0))
    run.run()
    check_accounts(run, "learner_0")
    return events(folder, "role_back")[0]


def test_the_newest_state_is_the_source(tmp_path):
    names = ("a", "b", "c", "d", "e")
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir()
    one, rare, first, saved, none = folders
    back = lost_in_update(one, 4)
    assert (back["source"], back["updates_done_again"]) == ("the snapshot of step 3", 0)
    back = lost_in_update(rare, 5, snapshot_every=3)
    assert (back["source"], back["updates_done_again"]) == ("the snapshot of step 3", 1)
    back = lost_in_update(first, 1)
    assert (back["source"], back["updates_done_again"]) == ("the model's files", 0)
    back = lost_in_update(saved, 4, snapshot_every=0, checkpoint_every=2)
    assert (back["source"], back["updates_done_again"]) == ("step_000002", 1)
    back = lost_in_update(none, 4, snapshot_every=0)
    assert (back["source"], back["updates_done_again"]) == ("the model's files", 3)


def test_records_are_kept_only_as_long_as_they_are_needed(tmp_path):
    run = HealedRun(tmp_path, num_steps=STEPS)
    trained = run.trained
    assert isinstance(trained, TrainedRoles)
    kept: list[int] = []
    step_done = trained.step_done

    def watching(step: int) -> None:
        step_done(step)
        kept.append(len(trained._updates))

    trained.step_done = watching
    run.run()
    assert kept == [1, 1, 1, 1, 1]


def test_a_snapshot_that_is_not_whole_leaves_the_one_before(tmp_path, undisturbed):
    """The learner hangs while it copies; what is done again is what came after the last one."""
    expected = undisturbed()
    run = HealedRun(tmp_path, num_steps=STEPS)
    run.on("learner take_state", 3, run.stop_rank(0))
    run.run()
    assert outcome(run) == expected
    check_accounts(run, "learner_0")
    (back,) = events(tmp_path, "role_back")
    assert back["source"] == "the snapshot of step 2"
    assert back["updates_done_again"] == 1


def test_losses_while_it_is_healed(tmp_path, undisturbed):
    """A new rank that does not start, and one that dies while its state comes back."""
    expected = undisturbed()
    run = HealedRun(tmp_path, num_steps=STEPS)
    run.on("learner update", 2, run.kill_rank(0))
    run.on("critic start", 1, run.kill_rank(1))
    run.on("learner restore_state", 1, run.kill_rank(0))
    run.run()
    assert outcome(run) == expected
    check_accounts(run, "learner_0", "critic_0.2", "learner_0.3", restarts=1)
    assert run.num_starts == 3


def test_past_the_budget_the_run_ends_with_the_first_cause(tmp_path):
    run = HealedRun(tmp_path, num_steps=STEPS, max_restarts=1)
    run.on("critic update", 1, run.kill_rank(1))
    run.on("learner update", 3, run.kill_rank(0))
    run.on("learner update", 5, run.kill_rank(0))
    with pytest.raises(RunFailed) as failure:
        run.run()
    message = str(failure.value)
    assert message.startswith("learner_0.3 died (phase update, step 2)")
    assert "the run has restarted its learner recovery.max_restarts=1 times" in message
    assert "The first loss was: critic_0 died (phase update, step 0)" in message
    assert len(events(tmp_path, "role_lost")) == 2


def test_a_reference_that_averages_is_not_sent_the_same_weights_twice(tmp_path):
    run = HealedRun(tmp_path, averages_reference=True)
    run.run()

    def refresh() -> None:
        run.kill_rank(0)()
        run.waiter.results(run.learner.take_state(), phase="refresh", timeout_s=1.0)

    with pytest.raises(RunFailed, match="the reference may have averaged some of these weights"):
        run.trained.do(refresh)


def test_engines_go_on_sampling_while_the_learner_is_healed(tmp_path, undisturbed):
    """With staleness 1 the next batch is under way; what was sampled meanwhile is scored."""
    expected = undisturbed(max_staleness=1)
    run = HealedRun(tmp_path, num_steps=STEPS, max_staleness=1)
    run.on("learner update", 3, run.kill_rank(0))
    run.run()
    assert outcome(run) == expected
    assert all(row["rollout/staleness_max"] <= 1 for row in run.written.rows)
    check_accounts(run, "learner_0")


def test_a_failure_of_something_else_ends_the_run(tmp_path):
    run = HealedRun(tmp_path)

    def fail() -> None:
        raise RunFailed("the disk is full")

    with pytest.raises(RunFailed, match="the disk is full"):
        run.trained.do(fail)
    assert run.num_starts == 0
