"""ShareGPT: a list of turns with `from` (human, gpt, system) and `value`."""

from __future__ import annotations

from rlhf_ray.data.chat_fields import read_tools
from rlhf_ray.data.prepare.conversion.chats import read_messages
from rlhf_ray.data.prepare.conversion.contents import Content, Demonstration
from rlhf_ray.data.prepare.conversion.mapping import Layout, by_row
from rlhf_ray.data.prepare.conversion.messages import Message
from rlhf_ray.data.rows import BadCell, Row

_COLUMNS = ("conversations", "items", "conversation")


def _read(row: Row, kind: str) -> Content:
    del kind
    for column in _COLUMNS:
        if column in row.cells:
            turns = read_messages(row.cells[column], column, role_key="from", content_key="value")
            break
    else:
        raise BadCell(
            f"the row has none of the columns {', '.join(_COLUMNS)}, only {sorted(row.cells)}"
        )
    system = row.cells.get("system")
    if isinstance(system, str) and system.strip() and turns[0].role != "system":
        turns = (Message(role="system", content=system), *turns)
    # A chat may stop after a question: the part up to the last answer is a demonstration.
    while len(turns) > 1 and turns[-1].role == "user":
        turns = turns[:-1]
    tools = tuple(read_tools(row.cells.get("tools"), "tools"))
    return Demonstration(messages=turns, tools=tools)


SHAREGPT = Layout(needs=(_COLUMNS,), apply=by_row(_read), reads=("system", "tools"))
