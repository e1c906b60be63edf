"""What every source of rows is told, whatever its rows are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_ray.config.setting import setting


@dataclass
class SourceConfig:
    """Where rows come from, how many of them, in which order, and what a bad one does.

    Attributes:
        group: the configuration's name for this source, so that messages name the right key.
    """

    group: ClassVar[str]

    path: str = setting(
        "",
        "A file (.jsonl, .json, .csv, .parquet), a folder written by "
        "datasets.save_to_disk, a hub name (NAME or NAME:SUBSET), or package.module:iterable.",
    )
    format: str = setting(
        "auto",
        "Kind of source; auto decides by what `path` names.",
        choices=("auto", "jsonl", "json", "csv", "parquet", "saved", "hub", "python"),
    )
    split: str = setting("train", "Split of a hub or saved data set.")
    limit: int | None = setting(
        None, "Use at most so many rows of the source.", unit="rows", minimum=1
    )
    on_bad_row: str = setting(
        "error",
        "A row that cannot be read ends the run, or is skipped and counted.",
        choices=("error", "skip"),
    )
    shuffle: bool = setting(True, "Shuffle every epoch by the run's seed.")

    @classmethod
    def key(cls, name: str) -> str:
        """The dotted name of one of its keys."""
        return f"{cls.group}.{name}"
