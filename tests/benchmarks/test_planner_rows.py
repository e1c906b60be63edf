"""The planner against published runs: rows that calibrate it, and rows that are held out."""

from __future__ import annotations

from pathlib import Path

from benchmarks.planner.errors import compared_rows, mean_error, written
from rlhf_ray.planning.roofline import CALIBRATED, Efficiencies

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
HELD_OUT = {"4", "6", "11", "13", "26", "33", "33b", "40"}
# One GPU, and 0.6 billion weights.
SMALL = {"32"}


def test_dense_rows_that_are_held_out_are_within_a_fifth():
    held_out = [row for row in compared_rows() if row.is_held_out]
    assert {row.row for row in held_out} == HELD_OUT
    errors = {row.row: row.error for row in held_out if row.is_dense}
    assert errors.keys() == {"4", "6", "26", "40"}
    assert {row: error for row, error in errors.items() if abs(error) > 0.2} == {}


def test_dense_rows_that_calibrate_are_within_a_fifth():
    errors = {
        row.row: row.error for row in compared_rows() if row.is_dense and row.row not in SMALL
    }
    assert len(errors) > 15
    assert {row: error for row, error in errors.items() if abs(error) > 0.2} == {}


def test_the_efficiencies_are_those_with_the_smallest_error():
    least = mean_error(CALIBRATED)
    for decode in (-0.05, 0, 0.05):
        for gemm in (-0.05, 0, 0.05):
            other = Efficiencies(decode=CALIBRATED.decode + decode, gemm=CALIBRATED.gemm + gemm)
            assert mean_error(other) >= least


def test_the_page_has_the_errors():
    """Written by `python -m benchmarks.planner.errors docs/planning.md`."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- errors -->") == 1
    assert written(text) == text
    assert f"({CALIBRATED.decode:g})" in text
    assert f"({CALIBRATED.gemm:g})" in text
