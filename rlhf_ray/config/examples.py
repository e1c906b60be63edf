"""Where the examples of the supervised and preference stages come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_ray.config.setting import setting
from rlhf_ray.config.source import SourceConfig

# Held out where nothing says how much.
_DEFAULT_EVAL_SHARE = 0.05


@dataclass
class ExamplesConfig(SourceConfig):
    """Source of texts, demonstrations, rankings or feedback, and how a row becomes an example."""

    group: ClassVar[str] = "examples"

    eval_path: str | None = setting(
        None, "Source of the held-out rows, named as `path` is; a share of `path` where it is null."
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
