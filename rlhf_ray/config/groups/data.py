"""Where prompts come from and how a row becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_ray.config.setting import setting
from rlhf_ray.config.source import SourceConfig


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
