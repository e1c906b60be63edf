"""The file of the times of every step."""

from __future__ import annotations

import json
import time
from typing import Any

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.observe.spans import span_log
from rlhf_ray.observe.spans.call_spans import CallSpans
from rlhf_ray.observe.spans.span_log import SpanLog


def worked(spans: CallSpans, role: str, rank: int, work: str, begin: float, end: float) -> None:
    member = MemberName(role=role, rank=rank)
    spans.add(Call(member=member, signal=None, payload=None, work=work), begin, end)


def rows(folder) -> list[dict[str, Any]]:
    lines = (folder / "spans.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]


def test_a_line_has_the_phases_and_the_workers_of_its_step(tmp_path):
    spans = CallSpans()
    worked(spans, "learner", 0, "start", 0.0, 1.0)
    log = SpanLog(tmp_path, spans, last_step=0)
    begun, wall = time.monotonic(), time.time()
    for phase in ("generate", "update"):
        log.phase(phase)
        time.sleep(0.02)
    worked(spans, "generator", 0, "generate", begun - 1.0, begun + 0.5)
    log.write(1)
    worked(spans, "learner", 0, "update", begun + 0.1, begun + 0.2)
    log.write(2)
    log.close()
    first, second = rows(tmp_path)
    assert first["step"] == 1
    assert abs(first["began_at"] - wall) < 0.05
    [[name, begin, middle], [other, same, end]] = first["phases"]
    assert (name, other) == ("generate", "update")
    assert begin <= 5
    assert middle == same
    assert middle >= 20
    assert end == first["ms"] >= 40
    [[[begin, end, calls]]] = [list(s) for s in first["workers"]["generator_0"].values()]
    assert abs(begin + 1000) <= 5
    assert abs(end - 500) <= 5
    assert calls == 1
    assert list(first["workers"]) == ["generator_0"], "the start belongs to no step"
    assert list(second["workers"]) == ["learner_0"]
    assert second["phases"] == []


def test_a_resumed_run_goes_on_after_a_torn_line_and_a_new_one_begins_again(tmp_path):
    path = tmp_path / "spans.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "wor')
    log = SpanLog(tmp_path, CallSpans(), last_step=1)
    log.write(2)
    log.close()
    lines = path.read_text().split("\n")
    assert lines[1] == '{"step": 2, "wor'
    assert json.loads(lines[2])["step"] == 2
    SpanLog(tmp_path, CallSpans(), last_step=0).close()
    assert path.read_text() == ""


def test_512_engines_take_40_kilobytes_a_step_and_a_long_run_is_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(span_log, "BYTES_OF_ALL_STEPS", 200_000)
    spans = CallSpans()
    log = SpanLog(tmp_path, spans, last_step=0)
    for step in range(1, 41):
        now = time.monotonic()
        for engine in range(512):
            worked(spans, "generator", engine, "generate", now + 0.1, now + 123.4)
            worked(spans, "generator", engine, "publish", now + 130.0, now + 135.0)
        for rank in range(64):
            worked(spans, "learner", rank, "update", now + 123.5, now + 130.0)
        log.write(step)
    log.close()
    steps = [row["step"] for row in rows(tmp_path)]
    size = (tmp_path / "spans.jsonl").stat().st_size
    assert size / len(steps) < 45_000
    assert steps[:5] == [1, 2, 3, 4, 5]
    # Every second one, then every fourth, then every eighth: the size grows with the logarithm.
    assert {step % 2 for step in steps[5:9]} == {0}
    assert steps[-1] == 40
    assert len(steps) < 20
