"""Alpaca: instruction, input (may be empty) and output (Taori et al. 2023)."""

from __future__ import annotations

from rlhf_ray.data.prepare.conversion.contents import Content, Demonstration
from rlhf_ray.data.prepare.conversion.mapping import Layout, by_row, text_in
from rlhf_ray.data.prepare.conversion.messages import Message
from rlhf_ray.data.rows import Row


def _read(row: Row, kind: str) -> Content:
    del kind
    instruction, output = text_in(row, "instruction"), text_in(row, "output")
    further = "" if row.cells.get("input") in (None, "") else text_in(row, "input")
    request = f"{instruction}\n\n{further}" if further.strip() else instruction
    return Demonstration(
        messages=(
            Message(role="user", content=request),
            Message(role="assistant", content=output),
        )
    )


ALPACA = Layout(needs=(("instruction",), ("output",)), apply=by_row(_read), reads=("input",))
