"""UltraFeedback, binarised: two chats with a score each (Tunstall et al. 2023)."""

from __future__ import annotations

from rlhf_ray.data.prepare.conversion.chats import BrokenChat
from rlhf_ray.data.prepare.conversion.columns import split_chat
from rlhf_ray.data.prepare.conversion.contents import Content, Preference
from rlhf_ray.data.prepare.conversion.mapping import Layout, by_row
from rlhf_ray.data.prepare.conversion.ranked import margin_of_pair
from rlhf_ray.data.rows import Row


def _read(row: Row, kind: str) -> Content:
    del kind
    asked = row.cells.get("prompt")
    prompt, chosen = split_chat(row.cells.get("chosen"), "chosen", asked)
    other, rejected = split_chat(row.cells.get("rejected"), "rejected", asked)
    if prompt != other:
        raise BrokenChat("chosen and rejected answer different prompts")
    margin = margin_of_pair(row, chosen_score="score_chosen", rejected_score="score_rejected")
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, margin=margin)


ULTRAFEEDBACK = Layout(
    needs=(("chosen",), ("rejected",)),
    apply=by_row(_read),
    reads=("prompt", "score_chosen", "score_rejected"),
    numbers=("score_chosen", "score_rejected"),
)
