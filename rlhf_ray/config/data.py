"""Where prompts come from and how a row becomes one."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class DataConfig:
    """Prompt source, column mapping and what to do with rows that do not fit."""

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
    prompt_column: str = setting(
        "prompt", "Column with the prompt: plain text, or a list of chat messages."
    )
    answer_column: str | None = setting(
        None, "Column with the reference answer that rewards may compare with."
    )
    source_column: str | None = setting(None, "Column with the name of the task a row belongs to.")
    id_column: str | None = setting(None, "Column with a stable id; the row number otherwise.")
    system_prompt: str | None = setting(None, "System message put before every chat that has none.")
    apply_chat_template: bool = setting(
        True, "Render the prompt with the model's own chat template where it has one."
    )
    max_prompt_tokens: int = setting(
        512, "Longest prompt that is trained on.", unit="tokens", minimum=1
    )
    on_long_prompt: str = setting(
        "skip",
        "A longer prompt is skipped and counted, or ends the run.",
        choices=("skip", "error"),
    )
    on_bad_row: str = setting(
        "error",
        "A row that cannot be read ends the run, or is skipped and counted.",
        choices=("error", "skip"),
    )
    shuffle: bool = setting(True, "Shuffle every epoch by the run's seed.")
    limit: int | None = setting(
        None, "Use at most so many rows of the source.", unit="rows", minimum=1
    )
