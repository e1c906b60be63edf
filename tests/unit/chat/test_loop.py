"""The chat loop with fake models and a fake screen."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest

from rlhf_ray.chat.endpoint import ChatEndpoint, EndpointFailed, TooLong
from rlhf_ray.chat.history import History
from rlhf_ray.chat.loop import HELP, Chat
from rlhf_ray.chat.screen import TerminalScreen
from rlhf_ray.chat.side_by_side import Piece


class FakeEndpoint(ChatEndpoint):
    """Answers `NAME: last text`, and remembers the chats that it was asked."""

    def __init__(self, name: str, *, longest: int = 100) -> None:
        self.name = name
        self.asked: list[list[Any]] = []
        self.num_closed = 0
        self.fails = ""
        self._longest = longest

    def answer(self, messages: Sequence[Any]) -> Iterator[str]:
        self.asked.append(list(messages))
        if len(messages) > self._longest:
            raise TooLong("at most so much")
        try:
            yield ""
            if self.fails:
                raise EndpointFailed(self.fails)
            yield f"{self.name}: "
            yield str(messages[-1]["content"])
        finally:
            self.num_closed += 1


class FakeScreen(TerminalScreen):
    """Types lines, raises an exception among them, and breaks off an answer as Ctrl-C does."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = list(lines)
        self.notes: list[str] = []
        self.shown: list[tuple[tuple[str, ...], list[str]]] = []
        self.interrupt_after: int | None = None
        self.errors: list[str] = []

    def read(self) -> str:
        line = self._lines.pop(0) if self._lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, names: Sequence[str], pieces: Generator[Piece, None, None]) -> list[str]:
        texts = [""] * len(names)
        for index, piece in enumerate(pieces):
            texts[piece.index] += piece.text
            self.errors += [str(piece.error)] if piece.error else []
            if index == self.interrupt_after:
                break
        self.shown.append((tuple(names), texts))
        return texts


def chat(screen: FakeScreen, *endpoints: FakeEndpoint, system: str | None = None) -> History:
    history = History(system)
    Chat(screen, endpoints, history).run()
    return history


def contents(messages: Sequence[Any]) -> list[str]:
    return [message["content"] for message in messages]


def test_turns_are_remembered_until_the_reset():
    endpoint = FakeEndpoint("a")
    screen = FakeScreen("one", "  ", "two", "/reset", "three", "/quit", "never")
    chat(screen, endpoint, system="be brief")
    assert [contents(asked) for asked in endpoint.asked] == [
        ["be brief", "one"],
        ["be brief", "one", "a: one", "two"],
        ["be brief", "three"],
    ]
    assert [m["role"] for m in endpoint.asked[1]] == ["system", "user", "assistant", "user"]
    assert [texts for _, texts in screen.shown] == [["a: one"], ["a: two"], ["a: three"]]
    assert screen.notes == ["(forgotten)"]
    assert endpoint.num_closed == 3


@pytest.mark.parametrize("end", [EOFError, "/quit", "/exit"])
def test_the_end(end):
    screen = FakeScreen(end, "never")
    endpoint = FakeEndpoint("a")
    chat(screen, endpoint)
    assert endpoint.asked == []


def test_ctrl_c_at_the_prompt_does_not_end_the_chat():
    screen = FakeScreen(KeyboardInterrupt, "one")
    chat(screen, FakeEndpoint("a"))
    assert screen.notes == ["(Ctrl-D or /quit ends the chat)"]
    assert len(screen.shown) == 1


def test_commands():
    screen = FakeScreen("/help", "/nonsense", "/compare")
    endpoint = FakeEndpoint("a")
    chat(screen, endpoint)
    assert screen.notes[0] == HELP
    assert "there is no command /nonsense" in screen.notes[1]
    assert "there is one model only" in screen.notes[2]
    assert endpoint.asked == []


def test_two_models_have_the_same_history():
    first, second = FakeEndpoint("a"), FakeEndpoint("b")
    screen = FakeScreen("one", "/compare", "two", "/compare", "three")
    chat(screen, first, second)
    assert screen.shown[1] == (("a", "b"), ["a: two", "b: two"])
    assert [names for names, _ in screen.shown] == [("a",), ("a", "b"), ("a",)]
    assert contents(second.asked[0]) == ["one", "a: one", "two"]
    assert second.asked == first.asked[1:2]
    assert contents(first.asked[2]) == ["one", "a: one", "two", "a: two", "three"]
    assert screen.notes == [
        "(a and b side by side; the chat goes on with the answers of a)",
        "(a alone)",
    ]


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said():
    endpoint = FakeEndpoint("a")
    screen = FakeScreen("one", "two")
    screen.interrupt_after = 1
    chat(screen, endpoint)
    assert [texts for _, texts in screen.shown] == [["a: "], ["a: "]]
    assert contents(endpoint.asked[1]) == ["one", "a: ", "two"]
    assert endpoint.num_closed == 2, "the server is told to stop"


def test_the_oldest_turns_are_dropped_if_the_chat_is_too_long():
    endpoint = FakeEndpoint("a", longest=4)
    screen = FakeScreen("one", "two", "three")
    chat(screen, endpoint, system="s")
    assert contents(endpoint.asked[-1]) == ["s", "two", "a: two", "three"]
    assert screen.notes == ["(the chat is too long for the model: left out its oldest turns, 1)"]
    assert screen.shown[-1] == (("a",), ["a: three"])


def test_turns_too_long_for_one_of_two_models_are_dropped_for_both():
    screen = FakeScreen("/compare", "one", "two")
    chat(screen, FakeEndpoint("a"), FakeEndpoint("b", longest=1))
    assert [texts for _, texts in screen.shown] == [["a: one", "b: one"], ["a: two", "b: two"]]
    assert screen.errors == []


def test_a_text_that_never_fits():
    endpoint = FakeEndpoint("a", longest=0)
    screen = FakeScreen("one")
    assert len(chat(screen, endpoint)) == 0
    assert screen.notes == ["(this alone is too long: at most so much)"]
    assert screen.shown == []


def test_a_failure_is_shown_and_not_remembered():
    endpoint = FakeEndpoint("a")
    endpoint.fails = "the engine ended"
    screen = FakeScreen("one", "two")
    assert len(chat(screen, endpoint)) == 0
    assert screen.errors == ["the engine ended", "the engine ended"]
    assert contents(endpoint.asked[1]) == ["two"]
