"""The terminal of the chat: reads lines with readline's keys, shows answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_ray.chat.side_by_side import Piece

_REFRESHES_PER_SECOND = 8
_STOPPED = " (stopped)"


class TerminalScreen:
    """Input and output of the chat.

    Args:
        output: stream for everything shown. Two answers are shown side by side on a terminal, and
            one after the other elsewhere.
    """

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self._output = output
        self._console = Console(file=output, highlight=False, markup=False)

    def read(self) -> str:
        """Read the user's next line.

        Raises:
            EOFError: the input has ended.
            KeyboardInterrupt: Ctrl-C.
        """
        # With readline, `input` has a history and can be edited; without it, it still works.
        try:
            import readline  # noqa: F401
        except ImportError:
            return input("you> ")
        return input("you> ")

    def note(self, text: str) -> None:
        """Show a line of the chat program itself, dimmed."""
        self._console.print(text, style="dim")

    def show(self, names: Sequence[str], pieces: Generator[Piece, None, None]) -> list[str]:
        """Show answers as they come.

        Returns:
            The text of each answer; the part that has come if Ctrl-C stopped it.
        """
        texts = [""] * len(names)
        if len(names) > 1 and self._console.is_terminal:
            self._show_beside(names, pieces, texts)
        else:
            self._show_below(names, pieces, texts)
        return texts

    def _show_below(
        self, names: Sequence[str], pieces: Generator[Piece, None, None], texts: list[str]
    ) -> None:
        """Show the first answer as it comes, and the others after it."""
        end = ""
        self._write(f"{names[0]}> ")
        try:
            for piece in pieces:
                shown = _shown(piece)
                texts[piece.index] += piece.text
                if piece.index == 0:
                    self._write(shown)
        except KeyboardInterrupt:
            end = _STOPPED
        self._write(f"{end}\n")
        for name, text in zip(names[1:], texts[1:], strict=True):
            self._write(f"{name}> {printable(text)}{end}\n")

    def _show_beside(
        self, names: Sequence[str], pieces: Generator[Piece, None, None], texts: list[str]
    ) -> None:
        """Show all answers in a live table, then print it once more.

        A live table is cut at the height of the terminal; the printed one stays and is complete.
        """
        shown = [""] * len(names)
        with Live(
            console=self._console,
            get_renderable=lambda: _side_by_side(names, shown),
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
        ):
            try:
                for piece in pieces:
                    texts[piece.index] += piece.text
                    shown[piece.index] += _shown(piece)
            except KeyboardInterrupt:
                shown = [text + _STOPPED for text in shown]
        self._console.print(_side_by_side(names, shown))

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()


def printable(text: str) -> str:
    """Replace control characters, so that a model cannot send commands to the terminal."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\ufffd" for char in text)


def _shown(piece: Piece) -> str:
    failure = f" (failed: {piece.error})" if piece.error is not None else ""
    return printable(piece.text + failure)


def _side_by_side(names: Sequence[str], texts: Sequence[str]) -> Table:
    table = Table(expand=True, show_lines=False)
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in texts))
    return table
