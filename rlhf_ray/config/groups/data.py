"""Sources of prompts, examples and texts, and their columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rlhf_ray.config.setting import setting


@dataclass
class SourceConfig:
    """Source of rows: path, format, limit, order, and the handling of bad rows.

    Attributes:
        group: name of the configuration group, for messages.
    """

    group: ClassVar[str]

    path: str = setting(
        "",
        "A file (.jsonl, .json, .csv, each also with .gz, .bz2, .xz or .zst; .parquet), a folder "
        "of such files, a folder written by datasets.save_to_disk, a hub name (NAME or "
        "NAME:SUBSET), or package.module:iterable.",
        is_path=True,
    )
    format: str = setting(
        "auto",
        "Kind of source; auto decides by `path`.",
        choices=("auto", "jsonl", "json", "csv", "parquet", "saved", "hub", "python"),
    )
    split: str = setting(
        "train",
        "Split of a hub or saved data set, or of a folder whose sub-folders or files are named "
        "like splits.",
    )
    limit: int | None = setting(
        None, "Largest number of rows to use; null for all.", unit="rows", minimum=1
    )
    on_bad_row: str = setting(
        "error",
        "For a row that cannot be read: end the run, or skip and count the row.",
        choices=("error", "skip"),
    )
    on_special_text: str = setting(
        "keep",
        "For a row whose own text has that of a special token, such as <eos>, which the tokenizer "
        "makes the special token: keep it and say how many there are, or refuse it as a bad row.",
        choices=("keep", "refuse"),
    )
    row_timeout_s: float = setting(
        600.0,
        "Longest wait for one row of a Python source, with its import before the first.",
        unit="seconds",
        above=0,
    )
    shuffle: bool = setting(True, "Shuffle every epoch by the run's seed.")

    @classmethod
    def key(cls, name: str) -> str:
        """The dotted name of a key of this group."""
        return f"{cls.group}.{name}"


@dataclass
class DataConfig(SourceConfig):
    """Source of prompts, its columns, and the handling of rows that do not fit."""

    group: ClassVar[str] = "data"

    prompt_column: str = setting(
        "prompt", "Column with the prompt: plain text, or a list of chat messages."
    )
    answer_column: str | None = setting(
        None, "Column with the reference answer, for rewards that compare with it."
    )
    source_column: str | None = setting(
        None,
        "Column with the name of the row's task, which rewards and metrics read. null: the task of "
        "all rows is the name of the file, which must then stay the same in a resumed run.",
    )
    tools_column: str | None = setting(
        "tools",
        "Column with the functions that an answer may call, for the chat template: a list, or JSON "
        "text of one. Rows may lack it. null leaves tools out.",
    )
    id_column: str | None = setting(None, "Column with a stable id; null takes the row number.")
    system_prompt: str | None = setting(None, "System message put before every chat that has none.")
    apply_chat_template: bool = setting(
        True, "Render the prompt with the model's chat template if it has one."
    )
    max_prompt_tokens: int = setting(512, "Longest prompt to train on.", unit="tokens", minimum=1)
    on_long_prompt: str = setting(
        "skip",
        "For a longer prompt: skip and count it, or end the run.",
        choices=("skip", "error"),
    )


# Held-out share where no key says how much.
_DEFAULT_EVAL_SHARE = 0.05


@dataclass
class ExamplesConfig(SourceConfig):
    """Source of texts, demonstrations, rankings or feedback, and its columns."""

    group: ClassVar[str] = "examples"

    eval_path: str | None = setting(
        None,
        "Source of the held-out rows, named like `path`; null holds out a share of `path`.",
        is_path=True,
    )
    eval_split: str | None = setting(
        None,
        "Split with the held-out rows, of a data set or folder as for `split`; without "
        "`eval_path`, a split of `path`.",
    )
    eval_share: float | None = setting(
        None,
        "Held-out share of the rows of `path`, selected by a hash of `id_column` or of the row's "
        f"question; null takes {_DEFAULT_EVAL_SHARE} if neither eval_path nor eval_split is set.",
        minimum=0,
        below=1,
    )
    id_column: str | None = setting(
        None, "Column with a stable id; null identifies rows by their question."
    )
    text_column: str = setting("text", "Column with a raw text.")
    messages_column: str = setting(
        "messages", "Column with a whole conversation: a list of chat messages."
    )
    prompt_column: str = setting(
        "prompt", "Column with the prompt of an answer: plain text, or a list of chat messages."
    )
    answer_column: str = setting("answer", "Column with the answer to a prompt.")
    chosen_column: str = setting("chosen", "Column with the better of two answers.")
    rejected_column: str = setting("rejected", "Column with the worse of two answers.")
    margin_column: str = setting(
        "margin", "Column with the margin between best and worst answer, at least 0."
    )
    ranking_column: str = setting(
        "ranking", "Column with a list of answers, best first, instead of chosen and rejected."
    )
    label_column: str = setting(
        "good", "Column with the label of an answer, good or not: true or false."
    )
    tools_column: str | None = setting(
        "tools",
        "Column with the functions that an answer may call, for the chat template: a list, or JSON "
        "text of one. Rows may lack it. null leaves tools out.",
    )
    system_prompt: str | None = setting(None, "System message put before every chat that has none.")
    apply_chat_template: bool = setting(
        True, "Render chats with the model's chat template if it has one."
    )
    max_tokens: int = setting(
        1024, "Longest example, prompt and answer together.", unit="tokens", minimum=2
    )
    on_long: str = setting(
        "cut",
        "For a longer example: cut its end, skip and count it, or end the run.",
        choices=("cut", "skip", "error"),
    )
    pack_texts: bool = setting(
        True,
        "Concatenate raw texts and cut them into pieces of `max_tokens`; false makes every text a "
        "separate example.",
    )

    scratch_dir: str | None = setting(
        None,
        "Folder on a disk of the driver's node for the tokens of the examples, four to five bytes "
        "each, while a run goes on; null takes the folder of temporary files (TMPDIR).",
        is_path=True,
    )

    @property
    def scratch_folder(self) -> Path | None:
        """`scratch_dir` as a path."""
        return None if self.scratch_dir is None else Path(self.scratch_dir).expanduser()

    @property
    def has_eval_source(self) -> bool:
        """Whether the held-out rows have a separate source."""
        return self.eval_path is not None or self.eval_split is not None

    @property
    def held_out_share(self) -> float:
        """Held-out share of the rows of `path`."""
        if self.eval_share is not None:
            return self.eval_share
        return 0.0 if self.has_eval_source else _DEFAULT_EVAL_SHARE


@dataclass
class TextsConfig(SourceConfig):
    """Texts whose language-model loss is added to the policy's loss (PPO-ptx). Read only with
    `algorithm.ptx_coefficient` above 0.
    """

    group: ClassVar[str] = "texts"

    text_column: str = setting("text", "Column with the text.")
    max_tokens: int = setting(512, "Longest piece of a text.", unit="tokens", minimum=2)
    on_long_text: str = setting(
        "split",
        "For a longer text: split it into separate pieces of max_tokens, or cut off the rest.",
        choices=("split", "cut"),
    )
    texts_per_step: int = setting(
        16, "Texts per optimiser step, over all learner ranks.", minimum=1
    )
