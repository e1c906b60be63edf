"""The record of the end of a stage, and its report, whatever the end is."""

from __future__ import annotations

import json
import os
import signal

import pytest

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.interrupts import CtrlC, EndOnSignal, Interrupted, is_interrupted
from rlhf_ray.stages import told_end as module
from rlhf_ray.stages.told_end import told_end
from tests.unit.report.test_page import data_of


def end_with(error, folder, *, stage="rl", is_there=True) -> None:
    with told_end(folder, stage, lambda: is_there):
        if error is not None:
            raise error


def ending(folder) -> dict:
    return json.loads((folder / "end.json").read_text())


def test_a_run_that_is_done(tmp_path, capsys):
    end_with(None, tmp_path)
    assert capsys.readouterr().out == f"Report: {tmp_path / 'report.html'}\n"
    record = ending(tmp_path)
    assert (record["stage"], record["cause"], record["message"]) == ("rl", "done", "")
    assert record["versions"]["torch"]
    run = data_of((tmp_path / "report.html").read_text())["runs"][0]
    assert run["end"] == record
    assert run["error"] == ""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RunFailed("learner_0 failed"), "failed: RunFailed"),
        (KeyError("x"), "failed: KeyError"),
        (KeyboardInterrupt(), "interrupted by Ctrl-C"),
        (Interrupted(signal.SIGTERM), "ended by SIGTERM"),
    ],
)
def test_any_other_end_passes_on_and_is_told(error, cause, tmp_path):
    with pytest.raises(type(error)) as raised:
        end_with(error, tmp_path)
    assert raised.value is error
    assert ending(tmp_path)["cause"] == cause
    run = data_of((tmp_path / "report.html").read_text())["runs"][0]
    assert type(error).__name__ in run["error"]


def test_a_refused_request_leaves_nothing(tmp_path):
    with pytest.raises(RequestError):
        end_with(RequestError("wrong"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["serve", "export"])
def test_other_stages_leave_nothing(stage, tmp_path):
    end_with(None, tmp_path, stage=stage)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_deleted_is_not_made_again(tmp_path):
    end_with(None, tmp_path / "gone", is_there=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, RunFailed("learner_0 failed")])
def test_a_report_that_cannot_be_written_fails_no_run(error, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a\x1bb")

    monkeypatch.setattr(module, "write_report", fail)
    if error is None:
        end_with(None, tmp_path)
    else:
        with pytest.raises(RunFailed):
            end_with(error, tmp_path)
    assert "could not be written (ZeroDivisionError: a\\x1bb)" in capsys.readouterr().err
    assert (tmp_path / "end.json").is_file()


@pytest.fixture
def handlers():
    """Those of the command."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGTERM, EndOnSignal())
    signal.signal(signal.SIGINT, CtrlC())
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raise_signal(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("error", [None, RunFailed("learner_0 failed")])
def test_a_signal_in_the_report_changes_no_outcome(error, number, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "write_report", lambda *_, **__: raise_signal(number))
    if error is None:
        end_with(None, tmp_path)
    else:
        with pytest.raises(RunFailed) as raised:
            end_with(error, tmp_path)
        assert raised.value is error
    # The command would take any failure for the end by a signal otherwise.
    assert not is_interrupted()
    assert ending(tmp_path)["cause"] == ("failed: RunFailed" if error else "done")
    assert "could not be written (a signal came)" in capsys.readouterr().err


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("number", "cause"),
    [(signal.SIGTERM, "ended by SIGTERM"), (signal.SIGINT, "interrupted by Ctrl-C")],
)
@pytest.mark.parametrize("made_of_it", [SystemExit(1), ImportError("interrupted import")])
def test_a_signal_that_a_library_has_changed_is_one(
    made_of_it, number, cause, tmp_path, monkeypatch
):
    bounds: list[object] = []
    write = module.write_report

    def noted(*args, **options):
        bounds.append(options["bounds"])
        assert options["num_tries"] == 1
        return write(*args, **options)

    monkeypatch.setattr(module, "write_report", noted)
    with pytest.raises((KeyboardInterrupt, Interrupted)):  # As a library does.
        raise_signal(number)
    with pytest.raises(type(made_of_it)):
        end_with(made_of_it, tmp_path)
    assert ending(tmp_path)["cause"] == cause
    assert bounds[0] is not None, "whoever sent it waits some seconds only"
    assert is_interrupted()
