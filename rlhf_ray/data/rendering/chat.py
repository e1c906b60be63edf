"""A chat and its rendering with a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.data.chat_fields import Message, Tool
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.rows import BadCell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedChat:
    """A chat and its rendering.

    Attributes:
        messages: as they were rendered.
        text: the rendering.
        learnt: for each message that is learnt, [start, stop) in `text` of what is learnt.
        for_answer: `text` ends with a generation prompt.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool]
    text: str
    learnt: Mapping[int, Part]
    for_answer: bool = False

    def try_render(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
    ) -> str | None:
        """Render other messages in the same way; None if the template refuses them."""
        try:
            return apply_template(
                messages, tokenizer, add_generation_prompt=self.for_answer, tools=self.tools
            )
        except BadCell:
            return None


def common_length(one: str, other: str) -> int:
    """Length of the common prefix of two texts, by bisection: slices are compared fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
