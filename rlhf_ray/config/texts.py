"""Texts that the policy goes on predicting while it is trained on rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_ray.config.setting import setting
from rlhf_ray.config.source import SourceConfig


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
