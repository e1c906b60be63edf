"""HH-RLHF: two transcripts with "\\n\\nHuman: " and "\\n\\nAssistant: " before the turns.

Bai et al. 2022, arXiv:2204.05862. The transcripts differ only in the last turn.
"""

from __future__ import annotations

import re

from rlhf_ray.data.prepare.conversion.chats import BrokenChat, role_named, split_text
from rlhf_ray.data.prepare.conversion.contents import Content, Preference
from rlhf_ray.data.prepare.conversion.mapping import Layout, by_row, text_in
from rlhf_ray.data.prepare.conversion.messages import Message, Messages
from rlhf_ray.data.rows import Row

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


def read_transcript(text: str) -> Messages:
    """Split a transcript into turns, without white space around them.

    Raises:
        BrokenChat: the transcript does not begin with a turn.
    """
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise BrokenChat(
            f"the transcript must begin with Human: or Assistant:; it begins with {text[:40]!r}"
        )
    return tuple(
        Message(role=role_named(speaker), content=said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )


def _read(row: Row, kind: str) -> Content:
    del kind
    prompt, chosen = split_text(read_transcript(text_in(row, "chosen")))
    other, rejected = split_text(read_transcript(text_in(row, "rejected")))
    if prompt != other:
        raise BrokenChat("chosen and rejected differ before their last turn")
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected)


HH_RLHF = Layout(needs=(("chosen",), ("rejected",)), apply=by_row(_read))
