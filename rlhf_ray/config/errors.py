"""Errors that end a run, with a message for the user.

The message is the only argument, so the errors can be pickled between processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RequestError(ValueError):
    """The request cannot be carried out; the message says what to change.

    Ends a run with exit status 2 and no traceback.
    """


class ConfigError(RequestError):
    """The configuration is wrong; the message lists every problem."""


class GatheredProblems:
    """The refusals of checks that do not need each other, for one message with all of them."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def gathered(self, where: str = "") -> Iterator[None]:
        """Keep a RequestError of the block; any other error goes on.

        Args:
            where: words in front of its message, such as the part of the request.
        """
        try:
            yield
        except RequestError as error:
            lines = str(error).split(_ITEM)
            found = lines[1:] if len(lines) > 1 and lines[0] == _title(len(lines) - 1) else [error]
            self._found += [f"{where}{problem}" for problem in found]

    def refuse(self) -> None:
        """Raise what was kept, each problem once; does nothing if there is none.

        Raises:
            RequestError: lists every problem.
        """
        problems = list(dict.fromkeys(self._found))
        if len(problems) == 1:
            raise RequestError(problems[0])
        if problems:
            raise RequestError(_title(len(problems)) + "".join(_ITEM + one for one in problems))


_ITEM = "\n  - "


def _title(count: int) -> str:
    return f"{count} things of the request are wrong:"


class RunFailed(RuntimeError):  # noqa: N818 - it reads as a sentence where it is raised
    """The run failed; the message has role, rank, phase, step, and what to try.

    Ends a run with exit status 1.
    """


class ToldFailure(RunFailed):
    """A failure of which the screen had its first line when it was found; the rest follows."""
