"""The chat loop: read a line, ask, show the answer as it comes; commands begin with a slash."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from rlhf_ray.chat.endpoint import ChatEndpoint, TooLong
from rlhf_ray.chat.history import History
from rlhf_ray.chat.screen import TerminalScreen
from rlhf_ray.chat.side_by_side import Piece, pieces_of

HELP = """\
/reset    forget what was said
/compare  ask both models from here on, side by side; again: the first alone
/help     this text
/quit     end, as Ctrl-D does
Ctrl-C stops an answer. What was said of it stays in the chat."""


class Chat:
    """One conversation.

    Args:
        endpoints: the model, and optionally a second one to compare it with.
        compares: ask both models from the start.
    """

    def __init__(
        self,
        screen: TerminalScreen,
        endpoints: Sequence[ChatEndpoint],
        history: History,
        *,
        compares: bool = False,
    ) -> None:
        self._screen = screen
        self._endpoints = tuple(endpoints)
        self._history = history
        self._compares = compares
        self._commands = {
            "/reset": self._reset,
            "/compare": self._toggle,
            "/help": lambda: screen.note(HELP),
        }

    def run(self) -> None:
        """Read and answer until the user ends the chat."""
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
        if len(self._endpoints) < 2:
            self._screen.note(
                "there is one model only; chat.compare_path or chat.compare_url names another"
            )
            return
        self._compares = not self._compares
        first, second = (endpoint.name for endpoint in self._endpoints)
        self._screen.note(
            f"({first} and {second} side by side; the chat goes on with the answers of {first})"
            if self._compares
            else f"({first} alone)"
        )

    def _ask(self, text: str) -> None:
        asked = self._endpoints if self._compares else self._endpoints[:1]
        try:
            pieces = self._beginning(asked, text)
        except TooLong as error:
            self._screen.note(f"(this alone is too long: {error})")
            return
        except KeyboardInterrupt:
            self._screen.note("(stopped)")
            return
        with closing(pieces):
            answers = self._screen.show([endpoint.name for endpoint in asked], pieces)
        # The chat goes on with the answers of the first model, so that both see the same history.
        if answers[0]:
            self._history.add(text, answers[0])

    def _beginning(self, asked: Sequence[ChatEndpoint], text: str) -> Generator[Piece, None, None]:
        """Begin the answers, with as much of the chat as fits.

        Only the server knows how long is too long, so the oldest turn is dropped and the question
        asked again until the server accepts it.

        Raises:
            TooLong: not even the new text alone fits.
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
        return pieces_of([lambda endpoint=one: endpoint.answer(messages) for one in asked])


def _first_pieces(
    pieces: Generator[Piece, None, None], num_answers: int
) -> tuple[list[Piece], TooLong | None]:
    """Wait until every answer has begun.

    Returns:
        The pieces so far, and the error of a model for which the chat is too long.
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
