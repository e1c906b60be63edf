"""Disk space for the tokens of examples: said in the plan, and refused before a row is read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.stages.fit import space
from rlhf_ray.stages.fit.space import check_space, described_space


def rows_of(path: Path, size: int) -> str:
    """A file of a size that takes no space."""
    path.write_text('{"text": "a"}\n')
    os.truncate(path, size)
    return str(path)


def test_the_plan_says_what_a_hundred_gigabytes_become(tmp_path):
    path = rows_of(tmp_path / "rows.jsonl", 100 * 10**9)
    examples = ExamplesConfig(path=path, scratch_dir=str(tmp_path))
    assert described_space(examples) == (
        f"100 GB of rows: about 25 billion tokens, which take about 100 GB in {tmp_path} on the "
        "driver's node while the run goes on (examples.scratch_dir)"
    )


@pytest.mark.parametrize(
    "change", [{"limit": 10}, {"path": "a.module:rows"}, {"path": "missing.jsonl"}]
)
def test_nothing_is_said_where_the_size_does_not_tell(change, tmp_path):
    values = {"path": rows_of(tmp_path / "rows.jsonl", 10**9), **change}
    assert described_space(ExamplesConfig(**values)) == ""
    assert described_space(ExamplesConfig(path=rows_of(tmp_path / "rows.jsonl.gz", 10**9))) == ""


def test_a_disk_that_is_surely_too_small_is_refused(tmp_path, monkeypatch):
    path = rows_of(tmp_path / "rows.jsonl", 10 * 10**9)
    examples = ExamplesConfig(path=path, scratch_dir=str(tmp_path))
    monkeypatch.setattr(space, "free_bytes", lambda _: 6 * 10**9)
    check_space(examples)  # Columns that are not learnt may be the half of it.
    monkeypatch.setattr(space, "free_bytes", lambda _: 4 * 10**9)
    with pytest.raises(RequestError, match=r"tokens of 10 GB of rows .*set examples\.scratch_dir"):
        check_space(examples)


def test_rows_of_both_sources_count(tmp_path):
    learnt = rows_of(tmp_path / "rows.jsonl", 3 * 10**9)
    held_out = rows_of(tmp_path / "held_out.jsonl", 10**9)
    assert described_space(ExamplesConfig(path=learnt, eval_path=held_out)).startswith("4 GB of")


def test_parquet_counts_as_it_is_without_its_compression(tmp_path):
    path = tmp_path / "rows.parquet"
    words = [f"{number} " * 40 for number in range(40_000)]
    table = pyarrow.table({"text": words})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    size = path.stat().st_size
    said = described_space(ExamplesConfig(path=str(path)))
    assert re.match(r"9\.\d+ MB of rows", said)
    assert size < 10**6
    path.write_text("damaged")
    assert described_space(ExamplesConfig(path=str(path))) == ""


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    path = rows_of(tmp_path / "rows.jsonl", 10)
    with pytest.raises(RequestError, match=r"examples\.scratch_dir is .*: there is no such folder"):
        check_space(ExamplesConfig(path=path, scratch_dir=str(tmp_path / "none")))


def test_all_files_of_a_folder_count(tmp_path):
    for name in ("a", "b"):
        rows_of(tmp_path / f"{name}.jsonl", 10**9)
    assert described_space(ExamplesConfig(path=str(tmp_path))).startswith("2 GB of rows")
    rows_of(tmp_path / "train.jsonl", 10**9)
    assert described_space(ExamplesConfig(path=str(tmp_path))) == "", "it is refused later"
