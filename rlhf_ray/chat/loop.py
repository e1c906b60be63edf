"""The chat: reads a line, asks, shows the answer as it comes; commands begin with a slash."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Protocol

from rlhf_ray.chat.endpoint import ChatEndpoint, TooLong
from rlhf_ray.chat.history import History
from rlhf_ray.chat.side_by_side import Piece, pieces_of

HELP = """\
/reset    forget what was said
/compare  ask both models from here on, side by side; again: the first alone
/help     this text
/quit     end, as Ctrl-D does
Ctrl-C stops an answer. What was said of it stays in the chat."""


class Screen(Protocol):
    """Where the chat is seen, and typed."""

    def read(self) -> str:
        """The next line of the user.

        Raises:
            EOFError: there will be none.
            KeyboardInterrupt: Ctrl-C.
        """
        ...

    def note(self, text: str) -> None:
        """A line of the chat's own."""
        ...

    def show(self, names: Sequence[str], pieces: Generator[Piece, None, None]) -> list[str]:
        """Show answers as they come.

        Returns:
            their texts; what has come of them where Ctrl-C stopped them.
        """
        ...


class Chat:
    """One conversation.

    Args:
        speakers: the model, and where there is one, another to compare it with.
    """

    def __init__(
        self,
        screen: Screen,
        speakers: Sequence[ChatEndpoint],
        history: History,
        *,
        compares: bool = False,
    ) -> None:
        self._screen = screen
        self._speakers = tuple(speakers)
        self._history = history
        self._compares = compares
        self._commands = {
            "/reset": self._reset,
            "/compare": self._toggle,
            "/help": lambda: screen.note(HELP),
        }

    def run(self) -> None:
        """Talk until the user ends it."""
        while True:
            try:
                line = self._screen.read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._screen.note("(Ctrl-D or /quit ends the chat)")
                continue
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._ask(line)

    def _command(self, line: str) -> None:
        command = self._commands.get(line)
        if command is None:
            self._screen.note(f"there is no command {line}; /help shows those that there are")
        else:
            command()

    def _reset(self) -> None:
        self._history.clear()
        self._screen.note("(forgotten)")

    def _toggle(self) -> None:
        if len(self._speakers) < 2:
            self._screen.note(
                "there is one model only; chat.compare_path or chat.compare_url names another"
            )
            return
        self._compares = not self._compares
        first, second = (speaker.name for speaker in self._speakers)
        self._screen.note(
            f"({first} beside {second}; the chat goes on with the answers of {first})"
            if self._compares
            else f"({first} alone)"
        )

    def _ask(self, text: str) -> None:
        asked = self._speakers if self._compares else self._speakers[:1]
        try:
            pieces = self._beginning(asked, text)
        except TooLong as error:
            self._screen.note(f"(this alone is too long: {error})")
            return
        except KeyboardInterrupt:
            self._screen.note("(stopped)")
            return
        with closing(pieces):
            answers = self._screen.show([speaker.name for speaker in asked], pieces)
        if answers[0]:
            self._history.add(text, answers[0])

    def _beginning(self, asked: Sequence[ChatEndpoint], text: str) -> Generator[Piece, None, None]:
        """Pieces of answers to as much of the chat as fits.

        Raises:
            TooLong: not even the text alone fits.
        """
        num_forgotten = 0
        while True:
            pieces = self._pieces(asked, text)
            first, too_long = _first_pieces(pieces, len(asked))
            if too_long is None:
                break
            pieces.close()
            if not self._history.forget_oldest():
                raise too_long
            num_forgotten += 1
        if num_forgotten:
            self._screen.note(
                f"(the chat is too long for the model: left out its oldest turns, {num_forgotten})"
            )
        return _all_of(first, pieces)

    def _pieces(self, asked: Sequence[ChatEndpoint], text: str) -> Generator[Piece, None, None]:
        messages = self._history.messages(text)
        return pieces_of([lambda speaker=speaker: speaker.answer(messages) for speaker in asked])


def _first_pieces(
    pieces: Generator[Piece, None, None], num_answers: int
) -> tuple[list[Piece], TooLong | None]:
    """Wait until every answer has begun.

    Returns:
        what has come so far; and whether the chat is too long for one of them.
    """
    found: list[Piece] = []
    for piece in pieces:
        found.append(piece)
        if isinstance(piece.error, TooLong):
            return found, piece.error
        if len({one.index for one in found}) == num_answers:
            break
    return found, None


def _all_of(
    first: Sequence[Piece], rest: Generator[Piece, None, None]
) -> Generator[Piece, None, None]:
    with closing(rest):
        yield from first
        yield from rest
