"""Progress displays on a wide screen, a narrow one, and without a screen."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from rlhf_ray.observe.facts import FIT_FACTS, duration
from rlhf_ray.observe.live import LiveProgress
from rlhf_ray.observe.progress import OffProgress, PlainProgress, make_progress

METRICS = {
    "reward/mean": 0.4321,
    "publish/probe_gap_max": 2.14e-6,
    "tokens/generated": 1024.0,
    "time/step_s": 2.0,
}


def test_plain_lines() -> None:
    stream = io.StringIO()
    progress = PlainProgress(60, stream)
    progress.phase("starting workers")
    progress.phase("starting workers")
    progress.phase("generate")
    progress.message("[batch] table")
    progress.step_done(1, METRICS)
    progress.phase("update")
    progress.step_done(2, {**METRICS, "time/step_s": 4.0})
    progress.step_done(3, {})
    progress.close()
    assert stream.getvalue().splitlines() == [
        "[0:00] starting workers",
        "[0:00] generate",
        "[batch] table",
        "step 1/60  reward 0.432  gap 2.1e-06  512 tokens/s  left 1:58",
        "step 2/60  reward 0.432  gap 2.1e-06  256 tokens/s  left 2:54",
        "step 3/60  reward -  gap -  - tokens/s  left 2:51",
    ]


def test_parts_that_not_every_run_has() -> None:
    stream = io.StringIO()
    progress = PlainProgress(9, stream)
    warmup = {**METRICS, "kl/reference": 0.25, "value/loss": 1.5, "rollout/staleness_max": 0.0}
    progress.step_done(1, warmup)
    later = {"policy/learning_rate": 1e-6, "rollout/staleness_max": 2.0}
    progress.step_done(2, {**warmup, **later})
    first, second = stream.getvalue().splitlines()
    assert "KL/answer 0.25  value loss 1.5  critic warm-up  512 tokens/s" in first
    assert "KL/answer 0.25  value loss 1.5  staleness 2  512 tokens/s" in second


def test_stages_on_preferences_show_accuracy_and_margin() -> None:
    stream = io.StringIO()
    progress = PlainProgress(9, stream, FIT_FACTS)
    progress.step_done(1, {"train/loss": 0.5, "train/accuracy": 0.75, "train/reward_margin": 0.1})
    progress.step_done(2, {"train/loss": 0.5, "train/accuracy": 0.75, "train/margin": 0.2})
    first, second = stream.getvalue().splitlines()
    assert "loss 0.500  held-out -  accuracy 0.750  margin 0.1  " in first
    assert "loss 0.500  held-out -  accuracy 0.750  margin 0.2  " in second


def test_time_left_follows_the_last_ten_steps() -> None:
    stream = io.StringIO()
    progress = PlainProgress(100, stream)
    for step in range(1, 51):
        progress.step_done(step, {**METRICS, "time/step_s": 60.0 if step <= 40 else 1.0})
    assert stream.getvalue().splitlines()[-1].endswith("left 0:50")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("columns", [120, 40, 12, 3])
def test_live_display_fits_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    stream = io.StringIO()
    progress = LiveProgress(60, stream)
    progress.phase("generate")
    progress.step_done(7, METRICS)
    progress.message("[red] is no markup here")
    progress.close()
    progress.close()
    # Cut, not wrapped: the last picture has three lines however narrow they are.
    picture = stream.getvalue().rpartition("\x1b[2K")[2]
    assert len(picture.splitlines()) == 3 + picture.endswith("\x1b[?25h")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = re.split(r"[\r\n]+", text)
    assert max(map(len, lines)) <= columns
    if columns == 120:
        assert "[red] is no markup here" in lines
        assert any(line.startswith("step 7/60") for line in lines)
        assert "reward 0.432  gap 2.1e-06  512 tokens/s  left 1:46" in [x.strip() for x in lines]
        assert any(line.startswith("generate 0:00  run 0:00") for line in lines)


def test_live_display_needs_no_steps() -> None:
    progress = LiveProgress(0, io.StringIO())
    progress.close()


def test_off_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress = make_progress("off", 1, sys.stdout)
    assert isinstance(progress, OffProgress)
    progress.phase("generate")
    progress.message("text")
    progress.step_done(1, METRICS)
    progress.close()
    assert capfd.readouterr() == ("", "")


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="progress is 'loud'; it must be one of auto"):
        make_progress("loud", 1, io.StringIO())


def test_auto_is_plain_where_there_is_no_terminal() -> None:
    assert isinstance(make_progress("auto", 1, io.StringIO()), PlainProgress)


@pytest.mark.parametrize(("term", "kind"), [("xterm", "LiveProgress"), ("dumb", "PlainProgress")])
def test_auto_looks_at_the_terminal(term: str, kind: str) -> None:
    code = (
        "import sys\nfrom rlhf_ray.observe.progress import make_progress\n"
        "progress = make_progress('auto', 1, sys.stdout)\nprogress.close()\n"
        "print(type(progress).__name__, file=sys.stderr)"
    )
    controller, terminal = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "TERM": term},
        )
    finally:
        os.close(controller)
        os.close(terminal)
    assert result.stderr.strip() == kind


def test_lines_of_a_stage_that_trains_on_examples() -> None:
    stream = io.StringIO()
    progress = make_progress("plain", 0, stream, FIT_FACTS)
    progress.expect(3)
    metrics = {"train/loss": 1.25, "tokens/trained": 90.0, "time/step_s": 3.0}
    progress.step_done(1, metrics)
    progress.step_done(2, {**metrics, "eval/loss": 2.5})
    assert stream.getvalue().splitlines() == [
        "step 1/3  loss 1.250  held-out -  30 tokens/s  left 0:06",
        "step 2/3  loss 1.250  held-out 2.500  30 tokens/s  left 0:03",
    ]
