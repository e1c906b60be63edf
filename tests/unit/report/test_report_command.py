"""`report RUN [RUN ...]` on the command line."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.main import main
from tests.unit.report.run_folders import write_metrics
from tests.unit.report.test_page import data_of


@pytest.fixture
def run(tmp_path):
    write_metrics(tmp_path / "run", 3, lambda step: {"reward/mean": 0.5})
    return tmp_path / "run"


def test_the_report_of_a_folder_is_made_again(run, capsys):
    (run / "report.html").write_text("old")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"Report: {run / 'report.html'}\n"
    assert data_of((run / "report.html").read_text())["runs"][0]["num_steps"] == 3


def test_a_relative_folder_and_one_that_is_named_twice(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert main(["report", "run", "run/", str(run)]) == 0
    assert capsys.readouterr().out == f"Report: {run / 'report.html'}\n"


def test_several_folders_are_compared_in_the_first(run, capsys):
    other = run.parent / "other"
    write_metrics(other, 4, lambda step: {"reward/mean": 0.7})
    assert main(["report", str(other), str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Report: {other / 'report.html'}",
        f"Report: {run / 'report.html'}",
        f"Comparison: {other / 'comparison.html'}",
    ]
    data = data_of((other / "comparison.html").read_text())
    assert [one["label"] for one in data["runs"]] == ["other", "run"]


def test_the_stages_of_a_pipeline_have_reports_too(run, capsys):
    folder = run.parent
    names = {"run": {"key": "a", "seconds": 2.5}, "gone": {"key": "b"}, "../x": {}}
    (folder / "progress.json").write_text(json.dumps({"stages": names}))
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Report: {run / 'report.html'}",
        f"Report: {folder / 'report.html'}",
    ]
    [stage, gone, _] = data_of((folder / "report.html").read_text())["runs"][0]["pipeline"]
    assert (stage["name"], stage["seconds"]) == ("run", 2.5)
    assert stage["report"] == "./run/report.html"
    assert gone["report"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs the output folder"),
        (["nowhere"], "there is no folder"),
        (["seed=1"], "takes folders, and no settings"),
        (["empty"], "holds no output of a run"),
        ([f"run{i}" for i in range(9)], "at most 8 runs"),
    ],
)
def test_a_wrong_request_is_refused_in_one_message(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rlhf_ray: ")
    assert words in err


def test_a_folder_that_cannot_be_written_is_named(run, capsys):
    (run / "report.html.partial").mkdir()
    assert main(["report", str(run)]) == 2
    assert f"cannot be written to '{run}'" in capsys.readouterr().err
