"""`trace RUN [STEPS]`, and the record of times in a report."""

from __future__ import annotations

import gzip
import itertools
import json
from typing import Any

import pytest

from rlhf_ray.main import main
from rlhf_ray.report.forgiving_reads import ReadNotes
from rlhf_ray.report.timeline import trace_command
from rlhf_ray.report.timeline.step_times import MAX_STEPS, shown_step_times
from tests.unit.report.run_folders import write_spans


def trace_of(folder) -> list[dict[str, Any]]:
    """The events of a trace, each checked against the trace-event format."""
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        trace = json.load(file)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert {"ph", "pid", "tid", "name"} <= event.keys()
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name")
        else:
            assert event["ph"] == "X"
            assert isinstance(event["ts"], int)
            assert event["ts"] >= 0
            assert isinstance(event["dur"], int)
            assert event["dur"] >= 0
    return trace["traceEvents"]


def names_of(events: list[dict[str, Any]], what: str) -> dict[tuple[int, int], str]:
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == what}


def test_a_trace_has_every_worker_and_phase_of_the_steps(tmp_path, capsys):
    write_spans(tmp_path, 5)
    assert main(["trace", str(tmp_path), "2-3"]) == 0
    assert "Trace of steps 2 to 3" in capsys.readouterr().out
    events = trace_of(tmp_path)
    processes = {pid: name for (pid, _), name in names_of(events, "process_name").items()}
    assert list(processes.values()) == ["driver", "generator_0", "generator_1", "learner_0"]
    tracks = names_of(events, "thread_name")
    spans = [e for e in events if e["ph"] == "X"]
    found = {(processes[e["pid"]], tracks[e["pid"], e["tid"]], e["name"]) for e in spans}
    assert found == {
        *(("driver", "step", f"step {step}") for step in (2, 3)),
        *(("driver", "phase", phase) for phase in ("generate", "update")),
        ("generator_0", "generate", "generate"),
        ("generator_1", "generate", "generate"),
        ("learner_0", "update", "update"),
    }
    # Engine 1 works from 100 ms before step 3 until 900 ms after it began; step 2 began first.
    mine = [e for e in spans if processes[e["pid"]] == "generator_1" and e["args"]["step"] == 3]
    driver = [e for e in spans if e["name"] == "step 3"]
    assert mine[0]["ts"] + mine[0]["dur"] == driver[0]["ts"] + 900_000
    assert mine[0]["args"]["calls"] == 4
    for key in tracks:
        track = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if (e["pid"], e["tid"]) == key)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(track)), key


def test_steps_that_a_resumed_run_does_again_count_once(tmp_path):
    write_spans(tmp_path, 3)
    text = (tmp_path / "spans.jsonl").read_text()
    again = {**json.loads(text.split("\n")[1]), "ms": 7777}
    with (tmp_path / "spans.jsonl").open("a") as file:
        file.write('{"step": 3, "half\n{"step": 3, "workers": 4}\n' + json.dumps(again) + "\n")
    assert main(["trace", str(tmp_path)]) == 0
    steps = [e for e in trace_of(tmp_path) if e.get("cat") == "step"]
    assert [(e["name"], e["dur"]) for e in steps] == [("step 1", 2_000_000), ("step 2", 7_777_000)]
    notes = ReadNotes()
    shown = shown_step_times(tmp_path, notes)
    assert [(step["step"], step["ms"]) for step in shown] == [(1, 2000), (2, 7777)]
    assert "spans.jsonl: lines of another form are left out" in notes.texts()


def test_too_large_a_trace_has_the_last_steps_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trace_command, "MAX_EVENTS", 15)
    write_spans(tmp_path, 9)
    assert main(["trace", str(tmp_path)]) == 0
    assert "its first 7 steps are left out" in capsys.readouterr().out
    names = {e["name"] for e in trace_of(tmp_path) if e.get("cat") == "step"}
    assert names == {"step 8", "step 9"}


def test_a_report_shows_few_of_many_steps_and_workers(tmp_path):
    write_spans(tmp_path, 3 * MAX_STEPS, num_engines=50)
    shown = shown_step_times(tmp_path, ReadNotes())
    assert 100 <= len(shown) <= MAX_STEPS
    assert shown[-1]["step"] >= 3 * MAX_STEPS - 4
    workers = [name for name, _ in shown[0]["workers"]]
    assert len(workers) == 12 + 1
    assert shown[0]["left_out"] == 38
    # Engine i works 200 i milliseconds longer: the longest and the shortest, in their order.
    assert workers[:5] == [
        "generator_0",
        "generator_1",
        "generator_2",
        "generator_3",
        "generator_42",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there were 0 arguments"),
        (["nowhere"], "has no spans.jsonl"),
        (["run", "8-3"], "ends before it begins"),
        (["run", "last"], "no step and no range"),
        (["run", "80"], "has no step of"),
        (["run", "1", "2"], "there were 3 arguments"),
    ],
)
def test_a_wrong_request_is_refused_in_one_message(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_spans(tmp_path / "run", 2)
    assert main(["trace", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlhf_ray: trace")
    assert words in err
    assert not (tmp_path / "run" / "trace.json.gz").exists()
