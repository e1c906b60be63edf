"""The comparisons of a benchmark, and which parts of it run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.aims import AIMS, Aim, comparisons
from benchmarks.run import PARTS, parse, write

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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


def test_what_benchmarks_import_of_the_package_is_there():
    """Without importing them, because the peer that some compare with is an extra."""
    imports = [
        (file.name, node.module, name.name)
        for file in BENCHMARKS.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_ray")
        for name in node.names
    ]
    assert len(imports) > 50
    missing = [
        (file, module, name)
        for file, module, name in imports
        if not hasattr(importlib.import_module(module), name)
        and importlib.util.find_spec(f"{module}.{name}") is None
    ]
    assert missing == []


def test_what_was_measured_is_written_before_the_end(tmp_path):
    write(tmp_path / "new" / "bench.json", {"publish_s": [3.0, 1.0, 2.0], "other_s": [1.0]})
    written = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert (written["publish_s"], written["all"]["other_s"]) == (2.0, [1.0])
    assert "other_s" not in written


def test_one_command_takes_one_part(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "--only", "startup", "--rounds", "1"])
    options = parse()
    assert list(options.only) == ["startup"]
    monkeypatch.setattr("sys.argv", ["run"])
    assert tuple(parse().only) == tuple(PARTS)
