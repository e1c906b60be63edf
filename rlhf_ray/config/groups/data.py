"""Where prompts come from and how a row becomes one."""

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
        is_path=True,
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


@dataclass
class DataConfig(SourceConfig):
    """Prompt source, column mapping and what to do with rows that do not fit."""

    group: ClassVar[str] = "data"

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


# Held out where nothing says how much.
_DEFAULT_EVAL_SHARE = 0.05


@dataclass
class ExamplesConfig(SourceConfig):
    """Source of texts, demonstrations, rankings or feedback, and how a row becomes an example."""

    group: ClassVar[str] = "examples"

    eval_path: str | None = setting(
        None,
        "Source of the held-out rows, named as `path` is; a share of `path` where it is null.",
        is_path=True,
    )
    eval_split: str | None = setting(
        None,
        "Split of the held-out rows of a hub or saved data set; without `eval_path` it is one of "
        "`path`.",
    )
    eval_share: float | None = setting(
        None,
        "Share of the rows of `path` that is held out, chosen by a hash of `id_column`, or of what "
        f"a row asks; null takes {_DEFAULT_EVAL_SHARE} where no other source of them is named.",
        minimum=0,
        below=1,
    )
    id_column: str | None = setting(
        None, "Column with a stable id; rows are told apart by what they ask otherwise."
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
        "margin", "Column with how much better the best answer is than the worst, at least 0."
    )
    ranking_column: str = setting(
        "ranking", "Column with a list of answers, best first, instead of the two."
    )
    good_column: str = setting("good", "Column that says whether an answer is good: true or false.")
    system_prompt: str | None = setting(None, "System message put before every chat that has none.")
    apply_chat_template: bool = setting(
        True, "Render chats with the model's own chat template where it has one."
    )
    max_tokens: int = setting(
        1024, "Longest example, prompt and answer together.", unit="tokens", minimum=2
    )
    on_long: str = setting(
        "cut",
        "A longer example is cut at its end, skipped and counted, or ends the run.",
        choices=("cut", "skip", "error"),
    )
    pack_texts: bool = setting(
        True,
        "Put raw texts one after the other and cut them into pieces of `max_tokens`, so that none "
        "is too long; every text is an example of its own otherwise.",
    )

    @property
    def has_eval_source(self) -> bool:
        """The held-out rows have a source of their own."""
        return self.eval_path is not None or self.eval_split is not None

    @property
    def held_out_share(self) -> float:
        """Share of the rows of `path` that is held out."""
        if self.eval_share is not None:
            return self.eval_share
        return 0.0 if self.has_eval_source else _DEFAULT_EVAL_SHARE


@dataclass
class TextsConfig(SourceConfig):
    """Texts whose language-model loss is added to the policy's. Read only with
    `algorithm.ptx_coefficient` above 0.
    """

    group: ClassVar[str] = "texts"

    text_column: str = setting("text", "Column with the text.")
    max_tokens: int = setting(
        512, "Longest text that is learnt in one piece.", unit="tokens", minimum=2
    )
    on_long_text: str = setting(
        "split",
        "A longer text is split into pieces of max_tokens, each a text by itself, or cut off.",
        choices=("split", "cut"),
    )
    texts_per_step: int = setting(
        16, "Texts in every optimiser step, over all learner ranks.", minimum=1
    )
