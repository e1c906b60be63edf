"""GSM8K: a question, and a worked answer that ends with "#### 72" (Cobbe et al. 2021)."""

from __future__ import annotations

import re

from rlhf_ray.data.prepare.conversion.chats import user_message
from rlhf_ray.data.prepare.conversion.contents import Content, Demonstration, PromptOnly
from rlhf_ray.data.prepare.conversion.mapping import Layout, by_row, text_in
from rlhf_ray.data.prepare.conversion.messages import Message
from rlhf_ray.data.rows import BadCell, Row, shown

# Input of the authors' calculator, which is not part of the answer.
_CALCULATION = re.compile(r"<<[^<>]*>>")
# Only the commas of thousands: "3,5" is not 35.
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")


def _read(row: Row, kind: str) -> Content:
    question, worked = text_in(row, "question"), text_in(row, "answer")
    steps, mark, result = worked.rpartition("####")
    if not mark or not result.strip():
        raise BadCell(f"column 'answer' must end with '#### RESULT'; it is {shown(worked)}")
    number = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), result.strip())
    if kind == "prompt":
        return PromptOnly(prompt=user_message(question), answer=number)
    answer = f"{_CALCULATION.sub('', steps)}#### {number}"
    return Demonstration(
        messages=(*user_message(question), Message(role="assistant", content=answer)),
        reference=number,
    )


GSM8K = Layout(needs=(("question",), ("answer",)), apply=by_row(_read))
