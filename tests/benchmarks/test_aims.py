"""The comparisons of a benchmark, and which parts of it run."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.aims import AIMS, Aim, comparisons
from benchmarks.run import PARTS, parse


def test_a_ratio_is_of_sums_and_says_whether_its_aim_is_met():
    aim = Aim(words="a / (b + c)", over=("a",), under=("b", "c"), sign="<=", limit=1.15)
    assert aim.line({"a": 2.0, "b": 1.0, "c": 1.0}) == "a / (b + c): 1.00 (aim: <= 1.15; met)"
    assert aim.line({"a": 3.0, "b": 1.0, "c": 1.0}) == "a / (b + c): 1.50 (aim: <= 1.15; missed)"
    assert aim.line({"a": 3.0, "b": 1.0}) is None


def test_a_figure_has_its_unit():
    aim = Aim(words="publishing", over=("p",), sign="<=", limit=0.6, unit="s")
    assert aim.line({"p": 0.55}) == "publishing: 0.55 s (aim: <= 0.6 s; met)"


def test_a_faster_peer_misses_the_aim():
    aim = Aim(words="peer / own", over=("peer",), under=("own",), sign=">=", limit=3.0)
    assert aim.line({"peer": 2.0, "own": 1.0}) == "peer / own: 2.00 (aim: >= 3; missed)"


def test_ratios_come_first():
    medians = {name: 1.0 for aim in AIMS for name in (*aim.over, *aim.under)}
    lines = comparisons(medians)
    assert len(lines) == len(AIMS)
    num_ratios = sum(bool(aim.under) for aim in AIMS)
    assert [" s (aim" in line for line in lines] == [False] * num_ratios + [True] * (
        len(AIMS) - num_ratios
    )


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_a_module(part):
    assert importlib.util.find_spec(f"benchmarks.{part}") is not None


def test_one_command_takes_one_part(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "--only", "startup", "--rounds", "1"])
    options = parse()
    assert list(options.only) == ["startup"]
    monkeypatch.setattr("sys.argv", ["run"])
    assert tuple(parse().only) == tuple(PARTS)
