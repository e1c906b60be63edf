"""Reading of an output folder into what a report shows."""

from __future__ import annotations

import json
import os

import pytest

from rlhf_ray.report import run_contents
from rlhf_ray.report.forgiving_reads import ReadNotes
from rlhf_ray.report.rollouts.rollout_reader import ReadBounds, read_rollouts
from rlhf_ray.report.run_contents import read_run
from tests.unit.report.run_folders import group, write_metrics, write_step


def values_of(folder, **bounds):
    return read_run(folder, **bounds).values(characters=1_000_000)


def test_an_empty_folder_has_an_empty_report(tmp_path):
    values = values_of(tmp_path)
    assert values["curves"] == {"steps": [], "values": {}}
    assert values["browsers"] == []
    assert values["left_out"] == ["there is no config.yaml: the settings of the run are not known"]
    json.dumps(values, allow_nan=False)


def test_broken_files_are_named_and_cost_no_more_than_their_panel(tmp_path):
    write_metrics(tmp_path, 3, lambda step: {"reward/mean": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('no json\n[1]\n{"reward/mean": 1}\n{"step": 4, "rewa')
    (tmp_path / "config.yaml").write_text("seed: [")
    (tmp_path / "summary.json").write_text("[]")
    (tmp_path / "startup.json").write_bytes(b"\xff")
    values = values_of(tmp_path)
    assert values["curves"] == {"steps": [1, 2, 3], "values": {"reward/mean": [0.1, 0.2, 0.3]}}
    notes = "\n".join(values["left_out"])
    assert "metrics.jsonl: 2 lines are no objects" in notes
    assert "metrics.jsonl: 1 lines name no step" in notes
    assert "config.yaml cannot be read" in notes
    assert "summary.json holds no object" in notes
    assert "startup.json cannot be read" in notes


@pytest.mark.timeout(60)
def test_named_pipes_are_not_waited_for(tmp_path):
    write_step(tmp_path, 1, [group("p", ["a"], [1])])
    for name in ("rollouts/step_000002.jsonl", "events.jsonl", "error.log", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    values = values_of(tmp_path)
    assert values["error"] == ""
    assert "step_000002.jsonl cannot be read: it is no regular file" in values["left_out"]


@pytest.mark.parametrize(
    ("function", "panel", "empty"),
    [
        ("find_events", "events", []),
        ("read_tables", "tables", []),
        ("check_all", "alarms", []),
        ("changed_settings", "settings", []),
    ],
)
def test_a_fault_of_one_panel_costs_that_panel(function, panel, empty, tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a fault")

    write_metrics(tmp_path, 3, lambda step: {"reward/mean": step / 10})
    monkeypatch.setattr(run_contents, function, fail)
    values = values_of(tmp_path)
    assert values[panel] == empty
    assert f"{panel} cannot be shown: ZeroDivisionError: a fault" in values["left_out"]
    assert values["curves"]["steps"] == [1, 2, 3]


def test_a_step_that_was_written_twice_counts_once_and_the_last_line_wins(tmp_path):
    lines = [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 2, "a": None, "b": True}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert values_of(tmp_path)["curves"] == {"steps": [1, 2], "values": {"a": [1.0, None]}}


def test_settings_are_a_difference_to_the_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "seed: 7\nnum_steps: 100\nstage:\n  name: rl\nalgorithm:\n  advantage: nonsense\n"
        "evaluation:\n  models:\n    a: b/c\nold:\n  key: 1\n"
    )
    values = values_of(tmp_path)
    assert {name: value for name, value, _ in values["settings"]} == {
        "seed": "7",
        "algorithm.advantage": "nonsense",
        "evaluation.models": '{"a": "b/c"}',
        "old.key": "1",
    }
    assert next(row for row in values["settings"] if row[0] == "seed")[2] == "0"
    assert next(row for row in values["settings"] if row[0] == "old.key")[2] == "-"


def test_long_curves_keep_their_spikes_and_say_so(tmp_path):
    write_metrics(tmp_path, 5000, lambda step: {"loss": 100.0 if step == 1234 else 1.0})
    values = values_of(tmp_path)
    curve = values["curves"]["values"]["loss"]
    assert len(curve) == len(values["curves"]["steps"]) == 600
    assert curve.count(100.0) == 1
    assert values["curves"]["steps"][-1] == 5000
    assert any("600 points for 5000 steps" in text for text in values["left_out"])


def test_of_too_many_metrics_those_of_single_tasks_go_first(tmp_path):
    tasks = {f"reward/mean/task{i}": 1.0 for i in range(500)}
    write_metrics(tmp_path, 2, lambda step: {"reward/mean": 1.0, "time/step_s": 1.0, **tasks})
    values = values_of(tmp_path)
    assert len(values["curves"]["values"]) == 400
    assert {"reward/mean", "time/step_s"} <= set(values["curves"]["values"])
    assert any("102 of 502 metrics are not drawn" in text for text in values["left_out"])


def test_the_same_prompt_across_steps_has_the_room_first(tmp_path):
    for step in range(1, 9):
        write_step(
            tmp_path,
            step,
            [
                group(f"only {step}", ["x " * 300], [0.0]),
                group("again", ["a", "b", "c"], [1, 0, 2]),
            ],
        )
    contents = read_run(tmp_path)
    [browser] = contents.values(characters=8_000)["browsers"]
    again = [g for g in browser["groups"] if browser["prompts"][g["prompt"]] == "again"]
    assert [browser["columns"][g["column"]] for g in again] == [str(step) for step in range(1, 9)]
    # The best and the worst of three.
    assert [s["text"] for s in again[0]["samples"]] == ["c", "b"]
    assert again[0]["samples_in_group"] == 3
    assert again[0]["mean"] == 1.0
    assert len(browser["groups"]) < 16
    assert any("of 16 prompts" in note for note in contents.values(characters=8_000)["left_out"])


def test_bounds_of_reading_leave_the_whole_run_visible(tmp_path):
    for step in range(1, 41):
        write_step(tmp_path, step, [group("p", ["a"], [step])])
    notes = ReadNotes()
    read = read_rollouts(tmp_path / "rollouts", notes, ReadBounds(files=9))
    assert [m.step for m in read.measures] == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert notes.texts() == ["rollouts: 9 of 40 steps with files were read"]

    seconds = iter(range(100))
    notes = ReadNotes()
    read = read_rollouts(
        tmp_path / "rollouts", notes, ReadBounds(seconds=4.0), clock=lambda: float(next(seconds))
    )
    assert [m.step for m in read.measures] == [1, 17, 33, 40]
    assert notes.texts() == ["rollouts: 4 of 40 steps with files were read"]


def test_a_large_file_is_read_in_part(tmp_path):
    write_step(tmp_path, 1, [group(f"p{i}", ["word " * 4000], [i]) for i in range(200)])
    notes = ReadNotes()
    read = read_rollouts(tmp_path / "rollouts", notes, ReadBounds(bytes=1024 * 1024))
    assert 40 < read.measures[0].num_prompts < 60
    assert len(read.groups) == 24
    assert "only the first 1 MiB" in notes.texts()[0]
    shown = read.groups[0].samples[0]["text"]
    assert len(shown) < 6100
    assert shown.endswith("more)")


def test_prompts_that_are_kept_are_the_same_in_every_step(tmp_path):
    prompts = [f"prompt {i}" for i in range(60)]
    write_step(tmp_path, 1, [group(p, ["a"], [0]) for p in prompts])
    write_step(tmp_path, 2, [group(p, ["a"], [0]) for p in reversed(prompts)])
    read = read_rollouts(tmp_path / "rollouts", ReadNotes(), ReadBounds(kept_groups=5))
    kept = {step: {g.prompt for g in read.groups if g.column == step} for step in ("1", "2")}
    assert len(kept["1"]) == 5
    assert kept["1"] == kept["2"]


def test_groups_and_rewards_over_time(tmp_path):
    write_step(tmp_path, 1, [group("p", ["a", "b"], [0, 1]), group("q", ["a", "b"], [1, 1])])
    write_step(tmp_path, 2, [group("p", ["a", "b"], [1, 1]), group("q", ["a"], [1])])
    groups = values_of(tmp_path)["groups"]
    assert groups["steps"] == [1, 2]
    assert groups["shares"]["groups of equal rewards"] == [0.5, 1.0]
    assert groups["shares"]["most common answer"] == [1.0, 1.0]
    assert groups["rewards"]["low"] == 0.0
    assert [sum(bands) for bands in groups["rewards"]["counts"]] == [4, 3]
    assert groups["rewards"]["counts"][0][0] == 1


def test_events_are_marked(tmp_path):
    write_metrics(
        tmp_path,
        6,
        lambda step: {
            "reward/mean": None if step == 3 else 1.0,
            **({"time/checkpoint_s": 2.0} if step == 5 else {}),
            "rollout/failed_groups": 2.0 if step == 6 else 0.0,
        },
    )
    (tmp_path / "best.json").write_text('{"step": 4, "metric": "m", "value": 0.5}')
    assert values_of(tmp_path)["events"] == [
        [3, "failure", "not finite: reward/mean"],
        [4, "best", "best model: m = 0.5"],
        [5, "checkpoint", "checkpoint, 2.0 s"],
        [6, "failure", "2 groups failed"],
    ]


def test_losses_and_recoveries_are_events(tmp_path):
    lost = {"event": "engine_lost", "what": "generator_1 died", "phase": "generate", "step": 2}
    back = {"event": "engine_back", "engine": "generator_1", "seconds": 12.5, "step": 4}
    lines = [{**lost, "reason": "SIGKILL"}, {**back, "groups_issued_again": 3}, {"event": "new"}]
    died = {"event": "role_lost", "what": "learner_0 died", "phase": "update", "step": 5}
    healed = {"event": "role_back", "source": "the snapshot of step 5", "seconds": 9.1, "step": 5}
    lines += [{**died, "reason": "SIGKILL"}, {**healed, "updates_done_again": 0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "events.jsonl").write_text(text + '{"event": "engine_lost", "st')
    assert values_of(tmp_path)["events"] == [
        [3, "loss", "generator_1 died in phase generate: SIGKILL"],
        [5, "recovery", "generator_1 serves, 12.5 s after the loss; 3 groups were issued again"],
        [6, "loss", "learner_0 died in phase update: SIGKILL"],
        [
            6,
            "recovery",
            "learner and critic go on, 9.1 s after the loss, from the snapshot of step 5; 0 "
            "updates were done again",
        ],
    ]


def test_many_events_are_thinned_by_kind(tmp_path):
    write_metrics(
        tmp_path,
        3000,
        lambda step: {"time/checkpoint_s": 1.0, "rollout/failed_groups": float(step == 7)},
    )
    values = values_of(tmp_path)
    kinds = [kind for _, kind, _ in values["events"]]
    assert kinds.count("failure") == 1
    assert kinds.count("checkpoint") == 399
    assert any("399 of 3000 events" in text for text in values["left_out"])
