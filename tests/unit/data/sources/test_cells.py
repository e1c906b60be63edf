"""Values that a source changes or cannot hold: refused by row, or made plain."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import lzma
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch

from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.data.chat_fields import read_calls
from rlhf_ray.data.rows import BrokenRow, DataError, Row, text_cell, unmapped_columns
from rlhf_ray.data.scalars import float_of_json, is_missing, number_text, python_value
from rlhf_ray.data.sources.cells import parse_json
from rlhf_ray.data.sources.read import read_rows, source_format, source_name

GOOD = '{"prompt": "good"}'
# A line of JSON that cannot be used, and what the message says.
BAD_LINES = {
    "half a pair": ('{"prompt": "hi \\ud83d"}', r"half of a surrogate pair, \\ud83d"),
    "half a pair, low": ('{"a": [{"b": "\\uDE00"}]}', r"half of a surrogate pair, \\ude00"),
    "half a pair in a name": ('{"\\udc00": 1}', "half of a surrogate pair"),
    "digits": ('{"prompt": ' + "9" * 5000 + "}", "whole number of more than 4300 digits"),
    "deep lists": ("[" * 100_000, "is nested deeper than 64 levels"),
    "deep objects": ('{"a":' * 900 + "1" + "}" * 900, "is nested deeper than 64 levels"),
    "just too deep": ('{"a":' + "[" * 65 + "]" * 65 + "}", "is nested deeper than 64 levels"),
    "a name twice": ('{"prompt": "a", "prompt": "b"}', "has the name 'prompt' twice"),
    "a name twice, inside": ('{"a": {"b": 1, "b": 1}}', "has the name 'b' twice"),
}


def read(path: Path | str, **settings: Any) -> list[Row | BrokenRow]:
    return list(read_rows(DataConfig(path=str(path), **settings)))


def cells(path: Path | str, **settings: Any) -> list[dict[str, Any]]:
    return [row.cells for row in read(path, **settings) if isinstance(row, Row)]


def problems(path: Path | str, **settings: Any) -> list[tuple[str, str]]:
    return [(r.where, r.problem) for r in read(path, **settings) if isinstance(r, BrokenRow)]


class TestJson:
    @pytest.mark.parametrize("name", BAD_LINES)
    def test_one_line_is_broken_and_the_rest_is_read(self, tmp_path: Path, name: str) -> None:
        line, words = BAD_LINES[name]
        path = tmp_path / "a.jsonl"
        path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
        assert cells(path) == [{"prompt": "good"}] * 2
        ((where, problem),) = problems(path)
        assert where == "a.jsonl line 2"
        assert pytest.raises(ValueError, match=words).matches(ValueError(problem)), problem

    @pytest.mark.parametrize("name", BAD_LINES)
    def test_a_list_in_a_file(self, tmp_path: Path, name: str) -> None:
        """One row is broken if the parser gets past it; else the message has the way out."""
        line, _ = BAD_LINES[name]
        path = tmp_path / "a.json"
        path.write_text(f"[{GOOD}, {line}, {GOOD}]")
        if name in ("digits", "deep lists"):
            with pytest.raises(DataError, match=r"a\.json .*set data\.format=jsonl"):
                read(path)
        else:
            assert cells(path) == [{"prompt": "good"}] * 2
            assert [where for where, _ in problems(path)] == ["a.json row 2"]

    def test_whole_pairs_and_depth_that_data_have(self, tmp_path: Path) -> None:
        row = {"prompt": "\U0001f600", "tools": [[[[[[{"a": {"b": [{"c": None}]}}]]]]]] * 30}
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(row))
        assert cells(path) == [row]

    def test_nan_is_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"answer": NaN, "more": [{"score": NaN}]}')
        assert cells(path) == [{"answer": None, "more": [{"score": None}]}]

    @pytest.mark.parametrize("text", ['[{"prompt": "a"}]', '[\n{"prompt": "a"}\n]', "\ufeff[ {}"])
    def test_a_list_under_the_name_of_lines_has_a_way_out(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(text)
        with pytest.raises(DataError, match=r"one list of objects.*set data\.format=json"):
            read(path)
        if text.endswith("]"):
            assert cells(path, format="json") == [{"prompt": "a"}]

    def test_a_message_about_a_long_value_is_short(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps("x" * 10_000_000))
        ((_, problem),) = problems(path)
        assert len(problem) < 200


# Numbers as JSON writes them, and the text that an answer, an id or a task is.
WRITTEN = {
    "9007199254740993.0": "9007199254740993.0",
    "12345678901234567890123.5": "12345678901234567890123.5",
    "3.14159265358979323846": "3.14159265358979323846",
    "1e-400": "1e-400",
    "1e16": "1e16",
    "0.10": "0.10",
    "2.00": "2.00",
    "1E5": "1E5",
    "12345678901234567890123": "12345678901234567890123",
    "0.1": "0.1",
    # As pandas writes a whole number in a column with a missing value.
    "7.0": "7",
    "-7.0": "-7",
}


class TestWrittenNumbers:
    @pytest.mark.parametrize("number", WRITTEN)
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
    def test_digits_are_those_of_the_file(self, tmp_path: Path, name: str, number: str) -> None:
        content = f'{{"answer": {number}}}'
        content = f"[{content}]" if name == "a.json" else content
        write = gzip.compress if name.endswith(".gz") else bytes
        (tmp_path / name).write_bytes(write(content.encode()))
        (row,) = read(tmp_path / name)
        assert isinstance(row, Row)
        assert text_cell(row, "answer") == WRITTEN[number]
        assert row.cells == {"answer": json.loads(number)}
        assert json.dumps(row.cells) == json.dumps({"answer": json.loads(number)})

    def test_a_number_too_large_for_a_float_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"answer": 1e400}')
        (row,) = read(tmp_path / "a.jsonl")
        assert isinstance(row, Row)
        with pytest.raises(ValueError, match=r"finite number; it is 1e400 \(float\)"):
            text_cell(row, "answer")

    def test_a_written_number_is_the_float_everywhere_else(self) -> None:
        number = float_of_json("0.10")
        assert (number, hash(number), number + 1) == (0.1, hash(0.1), 1.1)
        for copied in (pickle.loads(pickle.dumps(number)), copy.deepcopy(number)):
            assert copied == number
            assert number_text(copied) == "0.10"
        assert type(float_of_json("0.1")) is float

    def test_columns_of_rewards_have_plain_floats(self) -> None:
        cells = {"prompt": "a", "more": [float_of_json("0.10")]}
        plain, _ = unmapped_columns(DataConfig(), Row(number=0, where="a", cells=cells))
        assert plain == {"more": [0.1]}
        assert type(plain["more"][0]) is float

    @pytest.mark.parametrize("as_text", [False, True])
    def test_arguments_whose_digits_would_be_lost_are_refused(self, as_text: bool) -> None:
        written = '{"sum": [0.10, 9007199254740993.0]}'
        arguments = written if as_text else parse_json(written)
        call = {"name": "f", "arguments": arguments}
        with pytest.raises(ValueError, match=r"9007199254740993\.0, which .* 9007199254740992\.0"):
            read_calls([call], "message 1")
        call["arguments"] = parse_json('{"sum": [0.10, 1e16]}')
        assert read_calls([call], "message 1")[0]["function"]["arguments"] == {"sum": [0.1, 1e16]}


class TestCsv:
    def test_words_for_missing(self, tmp_path: Path) -> None:
        """The words that `datasets` takes for missing, and no others."""
        path = tmp_path / "a.csv"
        words = ["NA", "nan", "NaN", "None", "null", "N/A", "n/a", "NULL", "<NA>", "no", "0", "NAN"]
        path.write_text("n,word\n" + "".join(f"{n},{word}\n" for n, word in enumerate(words)))
        found = [row["word"] for row in cells(path)]
        theirs = pandas.read_csv(path)["word"].tolist()
        assert found == [None if isinstance(word, float) else word for word in theirs]
        assert found[-3:] == ["no", "0", "NAN"]

    def test_an_empty_cell_is_empty_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text('a,b\n,""\n')
        assert cells(path) == [{"a": "", "b": ""}]

    def test_a_line_that_is_not_utf_8_is_one_broken_row(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(b"prompt\ngood\ncaf\xe9\ngood\n")
        assert cells(path) == [{"prompt": "good"}] * 2
        assert problems(path) == [("a.csv line 3", "is not UTF-8: invalid byte 0xe9")]


CHATS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "id": None}]},
            {"role": "tool", "content": "2", "name": "f"},
        ]
    },
]


class TestArrow:
    """Arrow gives every object of a column all fields, and fills in None."""

    def written(self, kind: str, tmp_path: Path) -> Path:
        if kind == "parquet":
            path = tmp_path / "a.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CHATS), path)
            return path
        datasets.Dataset.from_list(CHATS).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    @pytest.mark.parametrize("kind", ["parquet", "saved"])
    def test_filled_fields_are_left_out(self, tmp_path: Path, kind: str) -> None:
        first, second = (row["messages"] for row in cells(self.written(kind, tmp_path)))
        assert first == CHATS[0]["messages"]
        assert second[1] == {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
        assert second[2] == {"role": "tool", "content": "2", "name": "f"}

    def test_null_columns_stay(self, tmp_path: Path) -> None:
        rows = [{"a": 1, "b": None}, {"a": None, "b": [None, "x"]}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        assert cells(tmp_path / "a.parquet") == rows

    def test_nan_is_missing(self, tmp_path: Path) -> None:
        table = pyarrow.table({"answer": pyarrow.array([1.5, math.nan])})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        assert cells(tmp_path / "a.parquet") == [{"answer": 1.5}, {"answer": None}]

    @pytest.mark.parametrize("kind", ["parquet", "saved"])
    def test_whole_numbers_of_pandas_are_integers(self, tmp_path: Path, kind: str) -> None:
        frame = pandas.DataFrame(
            [
                {"index": 3, "score": 2.0, "part": 1.5, "large": 2.0**53, "id": 7},
                {"index": None, "score": 4.0, "part": None, "large": None, "id": 8},
            ]
        )
        path = tmp_path / "a.parquet"
        frame.to_parquet(path, row_group_size=1)
        if kind == "saved":
            path = tmp_path / "saved"
            datasets.Dataset.from_pandas(frame).save_to_disk(str(path))
        first, second = cells(path)
        # A column that misses nothing was written as floats, and one fraction shows the kind.
        assert [repr(value) for value in first.values()] == [
            *("3", "2.0", "1.5", "9007199254740992.0", "7"),
        ]
        assert second == {"index": None, "score": 4.0, "part": None, "large": None, "id": 8}

    @pytest.mark.parametrize("kind", ["parquet", "saved"])
    @pytest.mark.parametrize("bits", [pyarrow.float32(), pyarrow.float16()])
    def test_short_floats_are_as_they_were_written(
        self, tmp_path: Path, kind: str, bits: pyarrow.DataType
    ) -> None:
        column = pyarrow.array(np.array([0.1, 2.5], bits.to_pandas_dtype()), type=bits)
        path, table = tmp_path / "a.parquet", pyarrow.table({"answer": column})
        if kind == "parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            path = tmp_path / "saved"
            datasets.Dataset(table).save_to_disk(str(path))
        assert cells(path) == [{"answer": 0.1}, {"answer": 2.5}]

    @pytest.mark.parametrize("kind", ["parquet", "saved"])
    def test_short_floats_inside_of_lists_and_structs(self, tmp_path: Path, kind: str) -> None:
        short = pyarrow.float32()
        scores = pyarrow.array([[0.1, None], None, []], type=pyarrow.list_(short))
        fixed = pyarrow.array([[0.1, 0.2]] * 3, type=pyarrow.list_(short, 2))
        struct = pyarrow.array(
            [{"low": 0.1, "name": "a", "all": [{"x": 0.7}]}] * 3,
            type=pyarrow.struct(
                [
                    ("low", pyarrow.float16()),
                    ("name", pyarrow.string()),
                    ("all", pyarrow.list_(pyarrow.struct([("x", short)]))),
                ]
            ),
        )
        exact = pyarrow.array([[0.1]] * 3, type=pyarrow.list_(pyarrow.float64()))
        columns = {"scores": scores, "fixed": fixed, "struct": struct, "exact": exact}
        path, table = tmp_path / "a.parquet", pyarrow.table(columns)
        if kind == "parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            path = tmp_path / "saved"
            datasets.Dataset(table).save_to_disk(str(path))
        first, second, third = cells(path)
        assert first == {
            "scores": [0.1, None],
            "fixed": [0.1, 0.2],
            "struct": {"low": 0.1, "name": "a", "all": [{"x": 0.7}]},
            "exact": [0.1],
        }
        assert (second["scores"], third["scores"]) == (None, [])

    def test_short_floats_of_maps(self, tmp_path: Path) -> None:
        kind = pyarrow.map_(pyarrow.string(), pyarrow.float32())
        table = pyarrow.table({"m": pyarrow.array([[("a", 0.1)], None], type=kind)})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        assert cells(tmp_path / "a.parquet") == [{"m": {"a": 0.1}}, {"m": None}]

    def test_maps_are_objects(self, tmp_path: Path) -> None:
        kind = pyarrow.map_(pyarrow.string(), pyarrow.int64())
        table = pyarrow.table({"m": pyarrow.array([[("a", 1)], [("a", 1), ("a", 2)]], type=kind)})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        assert cells(tmp_path / "a.parquet") == [{"m": {"a": 1}}]
        ((where, problem),) = problems(tmp_path / "a.parquet")
        assert where == "a.parquet row 2"
        assert "cannot be read: KeyError" in problem

    def test_text_that_is_not_utf_8_is_one_broken_row(self, tmp_path: Path) -> None:
        offsets = pyarrow.py_buffer(np.array([0, 1, 2, 3], dtype=np.int32).tobytes())
        text = pyarrow.Array.from_buffers(
            pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"a\xffb")]
        )
        pyarrow.parquet.write_table(pyarrow.table({"t": text}), tmp_path / "a.parquet")
        assert cells(tmp_path / "a.parquet") == [{"t": "a"}, {"t": "b"}]
        assert [where for where, _ in problems(tmp_path / "a.parquet")] == ["a.parquet row 2"]

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        table = pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, names=["a", "a"])
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match="several columns with the name 'a'"):
            read(tmp_path / "a.parquet")


class TestPython:
    """Rows of a Python iterable, as notebooks make them."""

    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
        monkeypatch.syspath_prepend(str(tmp_path))

        def make(code: str) -> str:
            name = f"made_{tmp_path.name}".replace("-", "_")
            (tmp_path / f"{name}.py").write_text(code)
            return f"{name}:rows"

        return make

    def test_values_of_libraries(self, source: Callable[[str], str]) -> None:
        path = source(
            "import numpy, pandas, torch\n"
            "rows = [{'i': numpy.int64(3), 'f': numpy.float32(0.5), 'b': numpy.bool_(True),\n"
            "  't': torch.tensor(2), 'h': torch.tensor(0.5, dtype=torch.bfloat16),\n"
            "  'n': numpy.float64('nan'), 'p': pandas.NA, 'z': numpy.array(7),\n"
            "  'chat': ({'role': 'user', 'content': numpy.str_('q')},),\n"
            "  'array': numpy.array([{'role': 'user'}], dtype=object)}]\n"
        )
        (row,) = cells(path)
        assert row == {
            "i": 3,
            "f": 0.5,
            "b": True,
            "t": 2,
            "h": 0.5,
            "n": None,
            "p": None,
            "z": 7,
            "chat": [{"role": "user", "content": "q"}],
            "array": [{"role": "user"}],
        }
        assert {type(row[name]) for name in "ifbthz"} == {int, float, bool}

    def test_short_floats(self, source: Callable[[str], str]) -> None:
        path = source(
            "import numpy, torch\n"
            "rows = [{'f': numpy.float32(0.1), 'z': numpy.array(0.1, numpy.float16),\n"
            "  'a': numpy.array([[0.1, 0.2]], numpy.float32), 't': torch.tensor(0.1),\n"
            "  'd': numpy.array([0.1])}]\n"
        )
        expected = {"f": 0.1, "z": 0.1, "a": [[0.1, 0.2]], "t": 0.1, "d": [0.1]}
        assert cells(path) == [expected]

    def test_a_data_frame(self, source: Callable[[str], str]) -> None:
        path = source(
            "import pandas\n"
            "rows = pandas.DataFrame({'prompt': ['a', 'b'], 'answer': [1.5, None]})"
            ".to_dict('records')\n"
        )
        assert cells(path) == [{"prompt": "a", "answer": 1.5}, {"prompt": "b", "answer": None}]

    def test_half_a_pair_and_depth(self, source: Callable[[str], str]) -> None:
        path = source(
            "deep = []\n"
            "for _ in range(2000): deep = [deep]\n"
            "rows = [{'p': 'hi \\ud83d'}, {'p': deep}, {'p': 'good'}]\n"
        )
        assert cells(path) == [{"p": "good"}]
        assert [where[-5:] for where, _ in problems(path)] == ["row 1", "row 2"]

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("import sys\nsys.exit(3)\n", r"made_.*:rows raised SystemExit after 0 rows: 3"),
            ("def rows():\n  yield {}\n  raise SystemExit\n", "raised SystemExit after 1 rows"),
            (
                "import time\ndef rows():\n  yield {}\n  time.sleep(60)\n",
                r"made_.*:rows has given no row for 0\.2 s, after 1 rows.*data\.row_timeout_s",
            ),
            ("def rows():\n  while True: pass\n", "has given no row for 0.2 s, after 0 rows"),
        ],
    )
    def test_a_source_that_ends_the_process_or_never_yields(
        self, source: Callable[[str], str], code: str, message: str
    ) -> None:
        started = time.monotonic()
        with pytest.raises(DataError, match=message):
            read(source(code), row_timeout_s=0.2)
        assert time.monotonic() - started < 20

    @pytest.mark.unit_slow
    def test_the_time_limit_is_that_of_one_row(self, source: Callable[[str], str]) -> None:
        path = source(
            "import time\n"
            "def rows():\n"
            "  for n in range(4):\n"
            "    time.sleep(0.3)\n"
            "    yield {'n': n}\n"
        )
        assert len(cells(path, row_timeout_s=1.0)) == 4
        time.sleep(1.0)  # no alarm is left


class TestCompressed:
    @pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.jsonl", f"{GOOD}\n{GOOD}\n"),
            ("a.csv", "prompt\ngood\ngood\n"),
            ("a.json", f"[{GOOD}, {GOOD}]"),
        ],
    )
    def test_read_as_the_file_inside(
        self, tmp_path: Path, suffix: str, name: str, text: str
    ) -> None:
        def zstd(content: bytes) -> bytes:
            return pyarrow.Codec("zstd").compress(content).to_pybytes()

        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(compress[suffix](text.encode()))
        assert cells(path) == [{"prompt": "good"}] * 2
        assert source_name(DataConfig(path=str(path))) == "a"

    @pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
    def test_damaged(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a.jsonl.{suffix}"
        path.write_bytes(b"not compressed" * 9)
        with pytest.raises(DataError, match=f"cannot be decompressed as .{suffix}"):
            read(path)

    def test_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress((GOOD + "\n").encode() * 1000)[:-20])
        with pytest.raises(DataError, match=r"cannot be decompressed as \.gz.*is it complete"):
            read(path)

    def test_parquet_is_compressed_inside(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet.gz"
        path.write_bytes(gzip.compress(b"x"))
        assert source_format(DataConfig(path=str(path))) == "parquet"
        with pytest.raises(DataError, match="decompress the file"):
            read(path)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.bool_(True), True),
        (np.isclose(1.0, 1.0), True),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.uint8(3), 3),
        (np.array(2.5), 2.5),
        (torch.tensor(True), True),
        (torch.tensor(3), 3),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (7, 7),
        (None, None),
    ],
)
def test_scalars_become_pythons_own(value: Any, plain: Any) -> None:
    assert python_value(value) == plain
    assert type(python_value(value)) is type(plain)


def test_arrays_are_no_scalars() -> None:
    for value in (np.array([1.0]), torch.tensor([1.0])):
        assert python_value(value) is value


def test_missing() -> None:
    assert all(map(is_missing, (None, math.nan, np.float64("nan"), pandas.NA, pandas.NaT)))
    assert not any(map(is_missing, (0, "", "nan", math.inf, [], np.array([math.nan, 1.0]))))


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.0, "5"), (-0.0, "0"), (5, "5"), (0.1, "0.1"), (1e22, "1e+22"), (2**70, str(2**70))],
)
def test_a_whole_number_is_written_without_a_point(value: float, text: str) -> None:
    """Arrow and pandas make floats of whole numbers where one is missing."""
    assert number_text(value) == text
    assert text_cell(Row(number=0, where="a row 1", cells={"answer": value}), "answer") == text
