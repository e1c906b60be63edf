"""The record of a start-up."""

from __future__ import annotations

import json
import time

from rlhf_ray.observe.startup import PARTS, StartupClock, process_age


def test_parts_follow_each_other_without_a_gap(tmp_path):
    clock = StartupClock(follows=True)
    said: list[str] = []
    for part in PARTS[:-1]:
        time.sleep(0.01)
        clock.done(part)
    clock.role("learner", "load", 1.5)
    clock.role("learner", "start", 0.25)
    clock.finish(tmp_path, said.append)
    written = json.loads((tmp_path / "startup.json").read_text())
    assert list(written["parts"]) == [f"{part}_s" for part in PARTS]
    assert abs(sum(written["parts"].values()) - written["total_s"]) < 0.01
    assert all(seconds >= 0.01 for seconds in list(written["parts"].values())[:-1])
    assert written["roles"] == {"learner": {"load_s": 1.5, "start_s": 0.25}}
    assert len(said) == 1
    assert said[0].startswith("start-up, to the end of the first step: 0.1 s (command 0.0, ")


def test_the_first_part_counts_from_the_creation_of_the_process():
    age = process_age()
    clock = StartupClock()
    clock.done("command")
    assert clock.values()["parts"]["command_s"] >= round(age, 3)


def test_the_age_of_a_process_grows_with_time():
    before = process_age()
    time.sleep(0.05)
    assert process_age() - before >= 0.05


def test_the_screen_shows_what_begins():
    clock = StartupClock(follows=True)
    shown: list[str] = []
    clock.done("ray")
    clock.show_phase = shown.append
    for part in PARTS:
        clock.done(part)
    assert shown == ["start workers", "start models and engines", "publish the first weights"]
