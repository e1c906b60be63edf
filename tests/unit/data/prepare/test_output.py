"""Refused inputs, atomic output folders, bounded memory."""

from __future__ import annotations

import fcntl
import gc
import json
import math
import tracemalloc
from collections.abc import Iterator

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.prepare import prepare as preparing
from rlhf_ray.data.prepare.counts import LengthCounts
from rlhf_ray.data.prepare.work_folder import work_folder
from rlhf_ray.data.rows import DataError
from rlhf_ray.data.sources.prepared import prepared_file
from tests.unit.data.prepare.helpers import Result, prepare, source, write_lines

pytestmark = pytest.mark.unit_slow

ROWS = [{"prompt": f"question {number}", "answer": str(number)} for number in range(20)]


@pytest.fixture
def good(tmp_path):
    return source("p", write_lines(tmp_path / "p.jsonl", ROWS), kind="prompt")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "hub", "python"])
def test_every_kind_of_source(tmp_path, kind, monkeypatch):
    if kind in ("jsonl", "hub"):
        folder = tmp_path / ("folder" if kind == "hub" else "")
        path = write_lines(folder / "rows.jsonl", ROWS)
        path = folder if kind == "hub" else path
    elif kind == "json":
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path = tmp_path / "rows.csv"
        path.write_text("prompt,answer\n" + "".join(f"{r['prompt']},{r['answer']}\n" for r in ROWS))
    elif kind == "parquet":
        path = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "saved":
        path = tmp_path / "saved"
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    else:
        path = f"{__name__}:ROWS"
    if kind == "hub":
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    lines = Result(tmp_path / "out", *source("p", path, kind="prompt")).lines("prompt")
    found = sorted((line["prompt"][0]["content"], line["answer"]) for line in lines)
    assert found == sorted((row["prompt"], row["answer"]) for row in ROWS)


def broken(tmp_path):
    """Sources that are wrong, with words of the message."""
    rows = write_lines(tmp_path / "rows.jsonl", [*ROWS, {"prompt": 1.5}, {"prompt": ["no chat"]}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "line.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    return {
        "no file": (source("p", tmp_path / "row.jsonl", kind="prompt"), ["rows.jsonl", "p.path"]),
        "no text file": (source("p", tmp_path / "a.txt"), ["a.txt", "no such file"]),
        "no folder": (source("p", tmp_path / "no" / "a.jsonl", kind="prompt"), ["no folder"]),
        "empty": (source("p", tmp_path / "empty.jsonl", kind="prompt"), ["has no rows"]),
        "wrong type": (
            source("p", rows, kind="prompt"),
            ["rows.jsonl line 22", "'no chat'", "prepare.on_bad_row=skip"],
        ),
        "no JSON": (
            source("p", tmp_path / "line.jsonl", kind="prompt"),
            ["line.jsonl line 2: is not JSON"],
        ),
        "no column": (
            source("p", rows, kind="prompt", columns={"answer": "anser"}),
            ["'anser'", "did you mean 'answer'", "prepare.sources.p.columns"],
        ),
        "no column of the layout": (
            source("p", rows, layout="alpaca"),
            ["layout=alpaca reads the column 'instruction'", "answer, prompt"],
        ),
        "no id": (source("p", rows, layout="hh_rlhf", columns={"id": "key"}), ["'chosen'"]),
        "hub split": (
            source("p", f"{__name__}:nothing", kind="prompt"),
            ["no 'nothing'", "prepare.sources.p.path"],
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "no file",
        "no text file",
        "no folder",
        "empty",
        "wrong type",
        "no JSON",
        "no column",
        "no column of the layout",
        "no id",
        "hub split",
    ],
)
def test_refused_before_any_work(tmp_path, name, good, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("work has begun")

    monkeypatch.setattr(preparing, "SampleStore", fail)
    overrides, words = broken(tmp_path)[name]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError) as caught:
        # The wrong source comes last: all are checked before the first is worked on.
        prepare(
            tmp_path / "out", *[k.replace("sources.p.", "sources.good.") for k in good], *overrides
        )
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert message.count("data.path") == 0
    assert sorted(tmp_path.iterdir()) == before


def test_numbers_keep_the_digits_of_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": 9007199254740993.0, "id": 0.10}\n')
    columns = {"prompt": "prompt", "answer": "answer", "id": "id"}
    chosen = source("p", path, kind="prompt", columns=columns)
    (line,) = Result(tmp_path / "out", *chosen).lines("prompt")
    assert (line["answer"], line["id"]) == ("9007199254740993.0", "p-0.10")


def test_bad_rows_may_be_left_out(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n{"prompt": [1]}\n')
    keys = source("p", path, kind="prompt")
    result = Result(tmp_path / "out", *keys, "prepare.on_bad_row=skip")
    assert len(result.lines("prompt")) == 1
    assert [(row["id"], row["where"], row["reason"]) for row in result.removed] == [
        ("p-row2", "p.jsonl line 2", "broken row"),
        ("p-row3", "p.jsonl line 3", "broken row"),
    ]


def test_a_set_of_which_nothing_is_left(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": ""}, {"prompt": " "}])
    with pytest.raises(DataError, match=r"no sample is left for prompt.*empty \(p.jsonl line 1"):
        prepare(tmp_path / "out", *source("p", path, kind="prompt"))
    assert sorted(tmp_path.iterdir()) == [path]


ONCE = iter(ROWS)


def test_a_source_that_gives_its_rows_once(tmp_path):
    with pytest.raises(DataError, match=r"had 20 samples.*now has|has no rows"):
        prepare(tmp_path / "out", *source("p", f"{__name__}:ONCE", kind="prompt"))
    assert list(tmp_path.iterdir()) == []


class TestCounts:
    def test_every_row_is_accounted_for(self, tmp_path):
        rows = [*ROWS, ROWS[0], {"prompt": ""}, {"prompt": 0.5}, {"prompt": {}}]
        keys = source("p", write_lines(tmp_path / "p.jsonl", rows), kind="prompt")
        result = Result(tmp_path / "out", *keys, "prepare.on_bad_row=skip")
        told = result.report["sources"]["p"]
        assert told["read"] + told["made"] == told["kept"] + sum(told["removed"].values()) == 24
        assert told["removed"] == {"duplicate": 1, "empty": 1, "broken row": 1}
        assert len(result.removed) == sum(told["removed"].values())
        assert result.report["removed"] == told["removed"]
        assert told["kept"] == result.report["datasets"]["prompt"]["train"] == 21

    def test_the_table(self, tmp_path, good, capsys):
        Result(tmp_path / "out", *good)
        out = capsys.readouterr().out
        assert f"Result: {tmp_path / 'out'}" in out
        for expected in ("Sources", "Sets", "prompt", "100.0%"):
            assert expected in out

    def test_lengths(self):
        lengths = LengthCounts()
        for length in range(1, 1001):
            lengths.add(length)
        told = lengths.to_json()
        assert (told["mean"], told["min"], told["max"]) == (500.5, 1, 1000)
        assert told["median"] == pytest.approx(500, rel=0.05)
        assert told["p95"] == pytest.approx(950, rel=0.05)

    def test_the_same_input_gives_the_same_bytes(self, tmp_path, good):
        names = ("report.json", "removed.jsonl", "prompt/train.jsonl", "prompt/eval.jsonl")
        results = [Result(tmp_path / name, *good, "prepare.eval_fraction=0.3") for name in "ab"]
        first, second = ([(r.output / name).read_bytes() for name in names] for r in results)
        assert first == second


class TestFolder:
    def test_an_earlier_result_is_replaced_as_a_whole(self, tmp_path, good):
        output = Result(tmp_path / "out", *good).output
        text = tmp_path / "t.txt"
        text.write_text("text")
        Result(output, *source("t", text))
        assert sorted(child.name for child in output.iterdir()) == [
            "config.yaml",
            "removed.jsonl",
            "report.json",
            "text",
        ]
        assert not list(tmp_path.glob("out.*"))

    def test_other_peoples_files_are_not_touched(self, tmp_path, good):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        with pytest.raises(RequestError, match=r"thesis\.tex"):
            prepare(tmp_path / "out", *good)
        assert (tmp_path / "out" / "thesis.tex").exists()

    def test_a_link_is_refused_before_any_work(self, tmp_path, good):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RequestError, match="a symbolic link to"):
            Result(tmp_path / "out", *good)

    def test_a_failure_leaves_the_earlier_result(self, tmp_path, good, monkeypatch):
        result = Result(tmp_path / "out", *good)
        before = {p: p.read_bytes() for p in result.output.rglob("*") if p.is_file()}

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(preparing.Preparation, "_write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "out", *good)
        assert {p: p.read_bytes() for p in result.output.rglob("*") if p.is_file()} == before
        assert not list(tmp_path.glob("out.*"))

    def test_partial_output_of_a_killed_run_is_deleted(self, tmp_path, good):
        left = tmp_path / "out.partial"
        write_lines(left / "text" / "train.jsonl", [{"text": "half"}])
        (left / "scratch.sqlite").write_text("half")
        output = Result(tmp_path / "out", *good).output
        assert not (output / "text").exists()
        assert not left.exists()

    def test_a_run_that_was_killed_between_the_renames(self, tmp_path):
        (tmp_path / "out.previous").mkdir()
        (tmp_path / "out.previous" / "report.json").write_text("old")
        with pytest.raises(ZeroDivisionError), work_folder(tmp_path / "out"):
            raise ZeroDivisionError
        assert (tmp_path / "out" / "report.json").read_text() == "old"

    def test_two_runs_at_once(self, tmp_path, good):
        (tmp_path / "out.partial").mkdir()
        with (tmp_path / "out.partial" / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(RequestError, match="another run is writing there"):
                prepare(tmp_path / "out", *good)


def test_a_missing_file_has_the_command_that_makes_it(tmp_path, good):
    with pytest.raises(RequestError, match=r"no demonstration/train.jsonl.*stage=prepare_data"):
        prepared_file(tmp_path, "sft")
    output = Result(tmp_path / "out", *good).output
    assert prepared_file(output, "rl") == output / "prompt" / "train.jsonl"
    assert prepared_file(output / "prompt" / "eval.jsonl", "rl").name == "eval.jsonl"
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    keys = source("p", path, kind="preference")
    output = Result(tmp_path / "stages", *keys, "prepare.split=[0,1,0]").output
    assert prepared_file(output, "reward_model").parent.name == "reward_model"


NUM_ROWS = [0]


def many_rows() -> Iterator[dict[str, str]]:
    """Rows of 4 kB, made as they are asked for."""
    for number in range(NUM_ROWS[0]):
        yield {"text": f"{number} {math.sqrt(number + 2):.15f} " * 150}


def test_memory_does_not_grow_with_the_set(tmp_path):
    def peak(count):
        NUM_ROWS[0] = count
        keys = source("t", f"{__name__}:many_rows", kind="text")
        # When the collector happens to run moves the peak by 600 kB: without it, cycles count too.
        gc.disable()
        tracemalloc.start()
        try:
            Result(tmp_path / "out", *keys, "prepare.duplicates=near")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            gc.enable()

    peak(20)
    few, many = peak(100), peak(400)
    size = (tmp_path / "out" / "text" / "train.jsonl").stat().st_size
    assert size > 1_200_000
    assert many - few < 100_000, "300 rows more are 1 MB more"
