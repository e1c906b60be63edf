"""Numbers of Parquet that are read as text have lost their digits: they are counted and said."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from tests.unit.data.prepare.helpers import Result, source, write_lines

pytestmark = pytest.mark.unit_slow

NOTE = (
    "column {!r} is a number, and was perhaps written with other digits (0.10 is 0.1 here); store "
    "answers as text"
)


def _parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_answers_and_ids_are_counted(tmp_path, capsys):
    rows = [
        {"prompt": f"p{n}", "answer": value, "id": 0.5 + n} for n, value in enumerate((0.1, 7.0))
    ]
    path = _parquet(tmp_path / "rows.parquet", rows)
    told = source("s", path, kind="prompt", columns={"id": "id"})
    result = Result(tmp_path / "out", *told)
    assert sorted(row["answer"] for row in result.lines("prompt")) == ["0.1", "7"]
    assert result.report["sources"]["s"]["found"] == {
        NOTE.format("answer"): 1,
        NOTE.format("id"): 2,
    }
    assert "was perhaps written" in capsys.readouterr().out


def test_numbers_that_are_read_as_numbers_are_none(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 0.5, "rejected_score": 0.25}
    ]
    path = _parquet(tmp_path / "rows.parquet", rows)
    result = Result(tmp_path / "out", *source("s", path, kind="preference"))
    assert result.report["sources"]["s"]["found"] == {}


def test_json_keeps_its_digits(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "p", "answer": 0.5}])
    result = Result(tmp_path / "out", *source("s", path, kind="prompt"))
    assert result.report["sources"]["s"]["found"] == {}
