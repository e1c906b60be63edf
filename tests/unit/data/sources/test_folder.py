"""Folders of data files: every file is read, named as left out, or refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_ray.config.groups.data import DataConfig, TextsConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row
from rlhf_ray.data.sources.read import (
    is_streamed,
    read_rows,
    source_files,
    source_format,
    source_notes,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library's cache, which it would otherwise fill in the home folder.
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def fill(folder: Path, *names: str) -> Path:
    """Files with one row each, which has the file's name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": name}
        if name.endswith(".csv"):
            path.write_text(f"prompt\n{name}\n")
        elif name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(json.dumps(row).encode()))
        else:
            path.write_text(json.dumps(row) + "\n")
    return folder


def prompts(folder: Path, **settings: Any) -> list[str]:
    rows = list(read_rows(DataConfig(path=str(folder), **settings)))
    assert [row.number for row in rows] == list(range(len(rows)))
    return [row.cells["prompt"] for row in rows if isinstance(row, Row)]


def note(folder: Path, **settings: Any) -> str:
    (line,) = source_notes(DataConfig(path=str(folder), **settings))
    return line


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        prompts(folder, **settings)
    return str(caught.value)


class TestWithoutSplits:
    @pytest.mark.parametrize(
        "names",
        [
            ("part_a.jsonl", "part_b.jsonl", "part_c.jsonl"),
            ("b.csv", "c.csv", "retrain.csv"),
            ("a.parquet", "b.parquet"),
            ("a.jsonl.gz", "b.jsonl"),
            ("a/z.jsonl", "b.jsonl", "c/a.jsonl"),
            ("a.json", "b.json"),
        ],
    )
    def test_all_files_are_read_in_the_order_of_their_names(
        self, tmp_path: Path, names: tuple[str, ...]
    ) -> None:
        fill(tmp_path, *reversed(names))
        (tmp_path / "LICENSE").write_text("free")
        assert source_format(DataConfig(path=str(tmp_path))) == "folder"
        assert prompts(tmp_path) == list(names)
        said = note(tmp_path)
        assert f"data.path is a folder: {len(names)} " in said
        assert f"files are read: {', '.join(names)}" in said
        assert "left out" not in said

    def test_messages_name_the_file(self, tmp_path: Path) -> None:
        fill(tmp_path, "a/x.jsonl", "b/x.jsonl")
        with (tmp_path / "b/x.jsonl").open("a") as file:
            file.write("no json\n")
        rows = list(read_rows(DataConfig(path=str(tmp_path))))
        assert [row.where for row in rows] == [
            "a/x.jsonl line 1",
            "b/x.jsonl line 1",
            "b/x.jsonl line 2",
        ]
        assert isinstance(rows[-1], BrokenRow)
        assert rows[-1].number == 2

    def test_texts_next_to_the_data_are_left_out_and_named(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jsonl", "b.jsonl")
        (tmp_path / "train_notes.txt").write_text("about")
        assert prompts(tmp_path) == ["a.jsonl", "b.jsonl"]
        assert note(tmp_path).endswith("; 1 are left out: train_notes.txt")

    def test_a_folder_of_texts_is_read(self, tmp_path: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text(name)
        rows = list(read_rows(DataConfig(path=str(tmp_path))))
        assert [row.cells for row in rows if isinstance(row, Row)] == [
            {"text": "a.txt"},
            {"text": "b.txt"},
        ]

    def test_hidden_files_and_facts_about_the_data_are_no_data(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jsonl", ".b.jsonl", ".cache/c.jsonl", "__pycache__/d.jsonl")
        (tmp_path / "dataset_infos.json").write_text("{}")
        assert prompts(tmp_path) == ["a.jsonl"]

    def test_several_formats_are_refused(self, tmp_path: Path) -> None:
        message = refusal(fill(tmp_path, "a.jsonl", "b.csv", "c.jsonl"))
        assert (
            "files of several formats (jsonl: a.jsonl, c.jsonl; csv: b.csv); name a file" in message
        )

    def test_there_is_no_split_to_ask_for(self, tmp_path: Path) -> None:
        message = refusal(fill(tmp_path, "a.jsonl", "b.jsonl"), split="test")
        assert "there is no 'test' (data.split), and all are 'train'" in message

    def test_a_limit_and_a_part_of_a_split(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
        assert prompts(tmp_path, limit=2) == ["a.jsonl", "b.jsonl"]
        assert prompts(tmp_path, split="train[1:]") == ["b.jsonl", "c.jsonl"]

    def test_keys_are_those_of_the_source(self, tmp_path: Path) -> None:
        texts = TextsConfig(path=str(fill(tmp_path, "a.jsonl", "b.csv")))
        with pytest.raises(DataError, match=r"^texts\.path is "):
            list(read_rows(texts))


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "others"),
        [
            (("train.jsonl",), ("test.jsonl", "valid.jsonl")),
            (("sft_train_1.csv", "sft_train_2.csv"), ("sft_test.csv",)),
            (("train/1.jsonl", "train/test_like.jsonl"), ("dev/1.jsonl",)),
            (("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
             ("data/random-00000-of-00001.parquet",)),
        ],
    )  # fmt: skip
    def test_the_asked_split_is_read_and_the_others_are_named(
        self, tmp_path: Path, train: tuple[str, ...], others: tuple[str, ...]
    ) -> None:
        fill(tmp_path, *others, *train)
        assert prompts(tmp_path) == list(train)
        said = note(tmp_path)
        assert f"split 'train', {len(train)} " in said
        assert f"files are read: {', '.join(train)}; {len(others)} are left out: " in said
        assert said.endswith(", ".join(sorted(others)))
        assert source_files(DataConfig(path=str(tmp_path))) == tuple(tmp_path / n for n in train)

    def test_other_words_for_a_split(self, tmp_path: Path) -> None:
        fill(tmp_path, "train.jsonl", "dev.jsonl")
        for word in ("validation", "dev", "val"):
            assert prompts(tmp_path, split=word) == ["dev.jsonl"]
        assert prompts(tmp_path, split="train+validation") == ["train.jsonl", "dev.jsonl"]

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        fill(tmp_path, "train.jsonl", "test.jsonl")
        message = refusal(tmp_path, split="dev")
        assert "whose files have no split 'dev' (data.split); there are: test, train" in message
        (tmp_path / "train.jsonl").unlink()
        assert "no split 'train' (data.split); there are: test" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("named", "others"),
        [
            (("train_old.jsonl",), ("part_a.jsonl", "part_b.jsonl")),
            (("train/1.jsonl",), ("extra.jsonl",)),
            (("data/train-00000-of-00001.jsonl",), ("data/more.jsonl",)),
        ],
    )
    def test_files_of_no_split_next_to_a_split_are_refused(
        self, tmp_path: Path, named: tuple[str, ...], others: tuple[str, ...]
    ) -> None:
        message = refusal(fill(tmp_path, *named, *others))
        assert f"named like a split ({', '.join(named)})" in message
        assert f"others are not ({', '.join(others)})" in message

    def test_a_file_of_two_splits_is_refused(self, tmp_path: Path) -> None:
        message = refusal(fill(tmp_path, "train.jsonl", "train_test.jsonl"))
        assert "train_test.jsonl could be of several splits (test, train)" in message

    def test_what_the_card_of_a_data_set_says_is_done(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jsonl", "b.jsonl")
        (tmp_path / "README.md").write_text(
            "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - split: train\n    path: b.jsonl\n---\nWords\n"
        )
        assert prompts(tmp_path) == ["b.jsonl"]
        assert "its README.md says which files split 'train' has" in note(tmp_path)
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nThere are\nconfigs: none\n")
        assert prompts(tmp_path) == ["a.jsonl", "b.jsonl"]


class TestColumns:
    def test_other_columns_are_refused_with_both_files(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jsonl", "b.jsonl")
        (tmp_path / "c.jsonl").write_text('{"question": "x"}\n')
        assert (
            "only a.jsonl has 'prompt', only c.jsonl has 'question' (in their first 20 rows)"
        ) in refusal(tmp_path)

    def test_a_column_that_some_rows_lack_is_allowed(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jsonl")
        (tmp_path / "b.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y", "tools": []}\n')
        assert prompts(tmp_path) == ["a.jsonl", "x", "y"]

    def test_the_library_names_the_columns_of_its_files(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.json")
        (tmp_path / "b.json").write_text('{"question": "x"}\n')
        message = refusal(tmp_path)
        assert "the folder cannot be loaded as a data set" in message
        assert "question" in message


def test_first_rows_of_a_folder_are_there_at_once(tmp_path: Path) -> None:
    assert is_streamed(DataConfig(path=str(fill(tmp_path / "lines", "a.jsonl", "b.jsonl"))))
    assert not is_streamed(DataConfig(path=str(fill(tmp_path / "lists", "a.json"))))


def test_a_folder_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "rows", "a.jsonl")
    datasets.Dataset.from_list([{"prompt": "s"}]).save_to_disk(str(tmp_path / "saved"))
    for name, first in (("rows", "a.jsonl"), ("saved", "s")):
        rows = list(read_rows(DataConfig(path=f"~/{name}")))
        assert [row.cells["prompt"] for row in rows if isinstance(row, Row)] == [first]
