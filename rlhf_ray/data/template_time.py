"""Time that a chat template writes: one for a whole run.

Templates of Llama 3.1, gpt-oss and others write the date, by calling `strftime_now`. A run that is
resumed on the next day would render other prompts, and two processes of a run at midnight, too.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FUNCTION = "strftime_now"
# In the tokenizer's own dictionary, because it must reach every place that renders, and because
# transformers saves no attributes that it does not know: a saved tokenizer writes the real time.
_ATTRIBUTE = "_rlhf_ray_template_time"


def freeze_time(tokenizer: PreTrainedTokenizerBase, time: str) -> None:
    """Render all chats of this tokenizer at one time.

    Args:
        time: as `datetime.isoformat` writes it.

    Raises:
        ValueError: it is no time.
    """
    vars(tokenizer)[_ATTRIBUTE] = datetime.fromisoformat(time)


def time_variables(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Variables for the template: the frozen time in place of the real one, if it is frozen.

    A variable wins over transformers' global function of the same name.
    """
    time: datetime | None = vars(tokenizer).get(_ATTRIBUTE)
    return {} if time is None or not writes_time(tokenizer) else {FUNCTION: time.strftime}


def writes_time(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template asks for the time."""
    return FUNCTION in str(tokenizer.chat_template or "")


def time_line(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Words on the time that the template writes; None if it writes none."""
    if not writes_time(tokenizer):
        return None
    time: datetime | None = vars(tokenizer).get(_ATTRIBUTE)
    if time is None:
        return (
            "the chat template writes the time of rendering (strftime_now): the checkpoint that "
            "this run goes on from has no model.template_time"
        )
    return (
        f"the chat template writes the time (strftime_now): {time.isoformat()} in the whole run "
        f"(model.template_time)"
    )
