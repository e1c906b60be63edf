"""Every kind of source, valid and broken."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_ray.config.groups.data import DataConfig, TextsConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row
from rlhf_ray.data.sources import files
from rlhf_ray.data.sources.read import read_rows, source_format, source_name

CELLS: list[dict[str, Any]] = [
    {"prompt": "What is ü?", "answer": "007"},
    {"prompt": 'two\nlines, "quoted"', "answer": "x"},
    {"prompt": "three", "answer": "3"},
]


def read(path: Path | str, **settings: Any) -> list[Row | BrokenRow]:
    return list(read_rows(DataConfig(path=str(path), **settings)))


def cells(path: Path | str, **settings: Any) -> list[dict[str, Any]]:
    rows = read(path, **settings)
    assert [row.number for row in rows] == list(range(len(rows)))
    return [row.cells for row in rows if isinstance(row, Row)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def broken(path: Path, **settings: Any) -> list[tuple[str, str]]:
    rows = read(path, **settings)
    return [(row.where, row.problem) for row in rows if isinstance(row, BrokenRow)]


class TestJsonLines:
    def test_rows(self, tmp_path: Path) -> None:
        text = "\n\n".join(json.dumps(row) for row in CELLS)
        assert cells(write(tmp_path / "a.jsonl", text)) == CELLS

    def test_byte_order_mark(self, tmp_path: Path) -> None:
        assert cells(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"prompt": "x"}')) == [
            {"prompt": "x"}
        ]

    def test_broken_lines_have_numbers_and_the_rest_is_read(self, tmp_path: Path) -> None:
        lines = [
            b'{"prompt": "a"}',
            b"",
            b'{"prompt": ',
            b"[1, 2]",
            b"\xff\xfe",
            b'{"prompt": "b"}',
        ]
        path = write(tmp_path / "a.jsonl", b"\n".join(lines))
        assert cells(path) == [{"prompt": "a"}, {"prompt": "b"}]
        places, problems = zip(*broken(path), strict=True)
        assert places == ("a.jsonl line 3", "a.jsonl line 4", "a.jsonl line 5")
        assert "is not JSON: Expecting value at column 11" in problems[0]
        assert "[1, 2] (list)" in problems[1]
        assert "is not UTF-8" in problems[2]


class TestJson:
    @pytest.mark.parametrize("content", [CELLS, {"data": CELLS, "version": 1}])
    def test_rows(self, tmp_path: Path, content: Any) -> None:
        assert cells(write(tmp_path / "a.json", json.dumps(content))) == CELLS

    def test_a_row_that_is_no_object(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.json", '[{"prompt": "a"}, "b"]')
        assert broken(path) == [("a.json row 2", "is not an object with columns but 'b' (str)")]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[\n{"prompt": }]', "line 2 column 12 is not JSON: Expecting value"),
            ('{"prompt": "a"}\n{"prompt": "b"}', "set data.format=jsonl"),
            ('{"rows": []}', "must hold a list of objects"),
            ("3", r"it holds 3 \(int\)"),
            (b"\xff", "is not UTF-8"),
        ],
    )
    def test_broken(self, tmp_path: Path, text: str | bytes, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(write(tmp_path / "a.json", text))


class TestCsv:
    def test_rows_stay_text(self, tmp_path: Path) -> None:
        text = 'prompt,answer\nWhat is ü?,007\n"two\nlines, ""quoted""",x\n\nthree,3\n'
        assert cells(write(tmp_path / "a.csv", text)) == CELLS

    def test_broken_rows_have_line_numbers_and_the_rest_is_read(self, tmp_path: Path) -> None:
        text = 'prompt,answer\n"two\nlines",1\nmore,2,3\nless\nbad,"x"y\nlast,4\n'
        path = write(tmp_path / "a.csv", text)
        assert [row["answer"] for row in cells(path)] == ["1", "4"]
        places, problems = zip(*broken(path), strict=True)
        assert places == ("a.csv line 4", "a.csv line 5", "a.csv line 6")
        assert problems[0] == "has 3 cells, but the header names 2 columns"
        assert problems[1] == "has 1 cells, but the header names 2 columns"
        assert problems[2].startswith("is broken: ")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("prompt,prompt\na,b\n", "every column needs its own name"),
            ("prompt,\na,b\n", "every column needs its own name"),
            ('pro"mpt,"a"b\n', "the header, is broken"),
            (b"\xff\nprompt\n", "header of .*a.csv is not UTF-8"),
        ],
    )
    def test_broken(self, tmp_path: Path, text: str | bytes, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(write(tmp_path / "a.csv", text))


class TestParquet:
    def test_rows_with_chats(self, tmp_path: Path) -> None:
        chat = [{"role": "user", "content": "hello"}]
        rows = [{"prompt": chat, "n": 1}, {"prompt": chat * 2, "n": None}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        assert cells(tmp_path / "a.parquet") == rows

    def test_a_row_group_as_large_as_the_file_is_not_read_at_once(self, tmp_path: Path) -> None:
        table = pyarrow.table({"prompt": [f"{number:010000}" for number in range(4000)]})
        pyarrow.parquet.write_table(
            table, tmp_path / "a.parquet", compression="none", use_dictionary=False
        )
        del table
        before = pyarrow.total_allocated_bytes()
        rows = read_rows(DataConfig(path=str(tmp_path / "a.parquet")))
        assert isinstance(next(rows), Row)
        assert pyarrow.total_allocated_bytes() - before < 30_000_000, "of 40,000,000"
        assert sum(1 for _ in rows) == 3999

    def test_not_parquet(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read(write(tmp_path / "a.parquet", "prompt,answer"))

    def test_cut_short(self, tmp_path: Path) -> None:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CELLS), tmp_path / "a.parquet")
        content = (tmp_path / "a.parquet").read_bytes()
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read(write(tmp_path / "b.parquet", content[: len(content) // 2]))


class TestDatasetsLibrary:
    def test_saved_dataset(self, tmp_path: Path) -> None:
        datasets.Dataset.from_list(CELLS).save_to_disk(str(tmp_path / "saved"))
        assert cells(tmp_path / "saved") == CELLS

    def test_saved_splits(self, tmp_path: Path) -> None:
        splits = {
            "train": datasets.Dataset.from_list(CELLS),
            "test": datasets.Dataset.from_list(CELLS[:1]),
        }
        datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
        assert cells(tmp_path / "saved", split="test") == CELLS[:1]
        with pytest.raises(DataError, match=r"no split 'tst'.*did you mean 'test'"):
            read(tmp_path / "saved", split="tst")

    def test_damaged_saved_folder(self, tmp_path: Path) -> None:
        datasets.Dataset.from_list(CELLS).save_to_disk(str(tmp_path / "saved"))
        next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"no arrow")
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "saved")

    def test_folder_that_was_not_saved(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"was not written by datasets\.save_to_disk"):
            read(tmp_path, format="saved")

    def test_split_of_a_folder_of_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The library's cache, which it would otherwise fill in the home folder.
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "files").mkdir()
        for split in ("train", "test"):
            text = "\n".join(json.dumps({**row, "split": split}) for row in CELLS)
            write(tmp_path / "files" / f"{split}.jsonl", text)
        assert source_format(DataConfig(path=str(tmp_path / "files"))) == "folder"
        rows = cells(tmp_path / "files", split="test", limit=2)
        assert rows == [{**row, "split": "test"} for row in CELLS[:2]]
        with pytest.raises(DataError, match=r"whose files have no split 'dev'"):
            read(tmp_path / "files", split="dev")

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ((), r"a folder without data files \(it holds: nothing\); name a file \(jsonl, json"),
            (("notes.md", "a.png"), r"a folder without data files \(it holds: a.png, notes.md\)"),
            (("config.json", "model.safetensors"), "the folder of a model"),
            (("config.yaml", "metrics.jsonl"), "the output folder of a run"),
        ],
    )
    def test_a_folder_without_rows(self, tmp_path: Path, files, words: str) -> None:
        for name in files:
            (tmp_path / name).touch()
        with pytest.raises(DataError, match=words):
            read(tmp_path)


class TestPython:
    @pytest.fixture(autouse=True)
    def _importable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def test_iterable(self) -> None:
        assert [row["answer"] for row in cells("python_rows:ROWS")] == ["1", "2"]

    def test_callable_without_end(self) -> None:
        assert cells("python_rows:endless", limit=3)[-1] == {"prompt": "row 2"}

    def test_builtin_tasks(self) -> None:
        rows = cells("rlhf_ray.data.builtin:arithmetic")
        assert len(rows) == len({row["prompt"] for row in rows}) == 100
        assert {"prompt": "What is 9+7?", "answer": "16"} in rows
        rows = cells("rlhf_ray.data.builtin:small_sums")
        assert len(rows) == len({row["prompt"] for row in rows}) == 64
        prompt = "What is 9 plus 2? Reply with the number only."
        assert {"prompt": prompt, "answer": "11"} in rows

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("no_such_module:rows", "no module 'no_such_module' can be imported"),
            ("python_rows:ROW", "has no 'ROW'; did you mean 'ROWS'"),
            ("python_rows:NUMBER", r"must give an iterable of dictionaries; it gives 7 \(int\)"),
            ("python_rows:failing", "raised KeyError after 1 rows: 'the cupboard is bare'"),
        ],
    )
    def test_broken(self, path: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(path)

    def test_a_path_of_an_earlier_release_names_the_new_one(self) -> None:
        old, new = (f"rlhf_ray.{folder}.sentiment:requests" for folder in ("tasks", "recipes"))
        with pytest.raises(DataError) as caught:
            read(old)
        assert str(caught.value) == (f"data.path is {old!r}, which has moved; set it to {new!r}")
        assert read(new)

    def test_name_without_module(self) -> None:
        with pytest.raises(DataError, match=r"is named package\.module:name"):
            read("ROWS", format="python")


class TestPath:
    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("x.jsonl", "jsonl"),
            ("x.NDJSON", "jsonl"),
            ("deep/er/x.json", "json"),
            ("x.csv", "csv"),
            ("x.parquet", "parquet"),
            ("package.module:name", "python"),
            ("owner/name", "hub"),
            ("owner/name:subset", "hub"),
        ],
    )
    def test_kind_by_the_form_of_the_path(self, path: str, kind: str) -> None:
        assert source_format(DataConfig(path=path)) == kind

    def test_kind_as_configured(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.txt", '{"prompt": "x"}')
        assert cells(path, format="jsonl") == [{"prompt": "x"}]

    def test_names_of_tasks(self) -> None:
        assert source_name(DataConfig(path="a/sums.jsonl")) == "sums"
        assert source_name(DataConfig(path="rlhf_ray.data.builtin:arithmetic")) == "arithmetic"

    def test_missing_file_names_the_nearest(self, tmp_path: Path) -> None:
        write(tmp_path / "prompts.jsonl", "")
        with pytest.raises(DataError, match=r"no such file; did you mean 'prompts.jsonl'"):
            read(tmp_path / "prompt.jsonl")

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("", "data.path is not set"),
            ("nowhere/rows.jsonl", "there is no folder 'nowhere'"),
            ("rows", "no such file or folder, and neither a hub name"),
            ("tests/no-such-data", "no such file or folder, and neither a hub name"),
            ("a/b/c", "no such file or folder, and neither a hub name"),
        ],
    )
    def test_nothing_there(self, path: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(path)

    def test_folder_in_place_of_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="a folder; name a file in it"):
            read(tmp_path, format="jsonl")

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"the suffix '.txt'.*set data.format"):
            read(write(tmp_path / "rows.txt", "x"))


class TestKeysOfAnotherGroup:
    """Messages name the keys of the source that is read, not those of the prompts."""

    def message(self, path: Path | str, **settings: Any) -> str:
        with pytest.raises(DataError) as caught:
            list(read_rows(TextsConfig(path=str(path), **settings)))
        message = str(caught.value)
        assert re.search(r"\bdata\.(path|format|split)", message) is None
        return message

    @pytest.mark.parametrize(
        ("path", "fragment"),
        [
            ("", "texts.path is not set"),
            ("nowhere/rows.jsonl", "texts.path is 'nowhere/rows.jsonl': there is no folder"),
            ("rows", "texts.format=hub asks the hub"),
            ("no_such_module:rows", "texts.path is 'no_such_module:rows': no module"),
            ("rlhf_ray.data.builtin:sum", "texts.path is 'rlhf_ray.data.builtin:sum'"),
        ],
    )
    def test_path(self, path: str, fragment: str) -> None:
        assert fragment in self.message(path)

    def test_format(self, tmp_path: Path) -> None:
        text = '{"text": "a"}\n{"text": "b"}'
        assert "set texts.format=jsonl" in self.message(write(tmp_path / "a.json", text))
        assert "set texts.format to one of jsonl" in self.message(write(tmp_path / "a.txt", text))
        assert "set texts.format=auto" in self.message(tmp_path, format="saved")
        assert "texts.path is 'ROWS'; a Python" in self.message("ROWS", format="python")
        assert "texts.path is" in self.message(tmp_path, format="jsonl")

    def test_data_sets(self, tmp_path: Path) -> None:
        splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(CELLS)})
        splits.save_to_disk(str(tmp_path / "saved"))
        assert "(texts.split)" in self.message(tmp_path / "saved", split="tst")
        (tmp_path / "empty").mkdir()
        assert "texts.path is" in self.message(tmp_path / "empty", format="hub")


def test_reading_a_file_loads_no_heavy_library(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "x"}')
    code = (
        "import sys\n"
        "from rlhf_ray.config.groups.data import DataConfig\n"
        "from rlhf_ray.data.sources.read import read_rows\n"
        f"assert len(list(read_rows(DataConfig(path={str(path)!r})))) == 1\n"
        "heavy = ['torch', 'transformers', 'datasets', 'pyarrow', 'ray', 'vllm', 'deepspeed']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_line_that_is_too_long_is_one_broken_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(files, "_SKIPPED_BYTES", 7)
    exact = json.dumps({"prompt": "x" * 25})
    assert len(exact) + 1 == 40
    lines = [exact, '{"prompt": "' + "y" * 90 + '"}', '{"prompt": "z"}', '{"prompt": "' + "w" * 90]
    first, long, after, last = read(write(tmp_path / "rows.jsonl", "\n".join(lines)))
    assert isinstance(first, Row)
    assert isinstance(after, Row)
    assert after.cells == {"prompt": "z"}
    for row, number in ((long, 2), (last, 4)):
        assert isinstance(row, BrokenRow)
        assert row.where == f"rows.jsonl line {number}"
        assert row.problem.startswith("has more than 40 bytes")


def test_a_list_that_is_too_large_for_memory_is_refused(tmp_path, monkeypatch) -> None:
    content = json.dumps([{"prompt": "x"}] * 3)
    path = write(tmp_path / "rows.json", content)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", len(content))
    assert len(read(path)) == 3
    monkeypatch.setattr(files, "MAX_FILE_BYTES", len(content) - 1)
    with pytest.raises(DataError, match=r"rows.json has more than 50 bytes, .*jq -c"):
        read(path)
    packed = tmp_path / "rows.json.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(DataError, match=r"rows.json.gz has more than 50 bytes"):
        read(packed)
