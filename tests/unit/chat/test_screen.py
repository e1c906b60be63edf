"""Display of answers: on a terminal, elsewhere, and with control characters."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterator

import pytest
from rich.console import Console

from rlhf_ray.chat.endpoint import EndpointFailed
from rlhf_ray.chat.screen import TerminalScreen, printable
from rlhf_ray.chat.side_by_side import Piece, pieces_of


def pieces(*found: tuple[int, str], interrupted: bool = False) -> Generator[Piece, None, None]:
    for index, text in found:
        yield Piece(index=index, text=text)
    if interrupted:
        raise KeyboardInterrupt


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


def test_one_answer(output):
    screen = TerminalScreen(output)
    assert screen.show(["m"], pieces((0, "Hel"), (0, "lo [b]"))) == ["Hello [b]"]
    assert output.getvalue() == "m> Hello [b]\n"


def test_an_answer_that_is_stopped(output):
    screen = TerminalScreen(output)
    assert screen.show(["m"], pieces((0, "Hel"), interrupted=True)) == ["Hel"]
    assert output.getvalue() == "m> Hel (stopped)\n"


def test_a_failure(output):
    def failing() -> Generator[Piece, None, None]:
        yield Piece(index=0, text="Hel")
        yield Piece(index=0, error=EndpointFailed("no more"))

    assert TerminalScreen(output).show(["m"], failing()) == ["Hel"]
    assert output.getvalue() == "m> Hel (failed: no more)\n"


def test_a_model_does_not_drive_the_terminal(output):
    assert printable("a\x1b[2Jb\r\tc\nd\x07é") == "a�[2Jb�\tc\nd�é"
    TerminalScreen(output).show(["m"], pieces((0, "\x1b[31m")))
    assert "\x1b" not in output.getvalue()


def test_two_answers_without_a_terminal(output):
    found = pieces((1, "B1"), (0, "A1"), (1, " B2"), (0, " A2"))
    assert TerminalScreen(output).show(["a", "b"], found) == ["A1 A2", "B1 B2"]
    assert output.getvalue() == "a> A1 A2\nb> B1 B2\n"


@pytest.mark.parametrize("interrupted", [False, True])
def test_two_answers_side_by_side(output, interrupted):
    screen = TerminalScreen(output)
    screen._console = Console(file=output, force_terminal=True, width=60)
    found = pieces((1, "right"), (0, "left"), interrupted=interrupted)
    assert screen.show(["a", "b"], found) == ["left", "right"]
    end = " (stopped)" if interrupted else ""
    last = [line for line in output.getvalue().splitlines() if "left" in line][-1]
    assert last.index("left" + end) < last.index("right" + end)


class TestTogether:
    def test_pieces_come_as_they_are_said(self):
        def counted(name: str) -> Iterator[str]:
            yield from (f"{name}{index}" for index in range(50))

        found = list(pieces_of([lambda: counted("a"), lambda: counted("b")]))
        for index, name in enumerate("ab"):
            said = [piece.text for piece in found if piece.index == index]
            assert said == [f"{name}{number}" for number in range(50)]

    @pytest.mark.parametrize("num_answers", [1, 2])
    def test_a_failure_ends_one_of_them(self, num_answers):
        def fails() -> Iterator[str]:
            yield "x"
            raise EndpointFailed("gone")

        def speaks() -> Iterator[str]:
            yield "y"

        found = list(pieces_of([fails, speaks][:num_answers]))
        assert [str(p.error) for p in found if p.error] == ["gone"]
        assert [p.text for p in found if p.index == 1 and p.text] == ["y"] * (num_answers - 1)

    def test_closing_ends_them(self):
        ended: list[str] = []

        def endless(name: str) -> Iterator[str]:
            try:
                while True:
                    yield name
            finally:
                ended.append(name)

        found = pieces_of([lambda: endless("a"), lambda: endless("b")])
        next(found)
        found.close()
        for _ in range(500):
            if sorted(ended) == ["a", "b"]:
                return
            time.sleep(0.01)
        raise AssertionError(ended)
