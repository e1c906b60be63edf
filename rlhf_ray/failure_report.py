"""The last words of a command that failed: one message for people, the traceback in a file."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhf_ray.config.errors import RequestError, RunFailed, ToldFailure
from rlhf_ray.disk_space import DiskFull, full_disk
from rlhf_ray.interrupts import current_handler, is_interrupted
from rlhf_ray.unread_output import not_written

ERROR_LOG = "error.log"
_MOST_OF_LINE = 300
# Control, format (such as U+202E, which turns the direction of writing), surrogate.
_OBEYED = frozenset({"Cc", "Cf", "Cs"})


class NotWritten(Exception):  # noqa: N818 - it reads as a sentence where it is raised
    """The output of a command cannot be written; the message says why."""


def report_failure(error: BaseException, folder: Path | None) -> None:
    """Say on the error stream what failed, and where the traceback is.

    Args:
        folder: the output folder; None before there is one.
    """
    print(f"rlhf_ray: failed: {printable(_message(error, folder))}", file=sys.stderr)
    log = _written_log("".join(traceback.format_exception(error)), folder)
    if log is not None:
        print(f"rlhf_ray: the traceback is in {log}", file=sys.stderr)
    elif not isinstance(error, DiskFull):
        # One traceback: that of the cause, where there is a chain of errors.
        traceback.print_exception(_cause(error), chain=False)


@contextmanager
def said_at_once() -> Iterator[None]:
    """Say a failure of the block before workers are ended and reports are written.

    A failure of a worker was said by whoever found it, and a signal is said at the end.
    """
    try:
        yield
    except (RequestError, ToldFailure):
        raise
    except Exception as error:
        if not is_interrupted():
            say_failed(_message(error, None), "ending the workers and writing the report")
        raise


def say_failed(message: str, then: str) -> None:
    """Say the first line of a failure, and what happens before the rest is said."""
    first = (message.strip().splitlines() or ["no reason is known"])[0]
    more = "..." if len(first) > _MOST_OF_LINE else ""
    current_handler().say(f"failed: {printable(first[:_MOST_OF_LINE])}{more}; {then}")


def printable(text: str) -> str:
    """The text without what a terminal would obey: escapes for control and direction characters."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _OBEYED else ascii(char)[1:-1]
        for char in text
    )


@contextmanager
def quiet_if_not_read() -> Iterator[None]:
    """End the block without a word if the reader of the output has left, as `head` does.

    Raises:
        NotWritten: the output is a file that cannot be written.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _close_output()
    except OSError as error:
        words = not_written(error)
        if words is None:
            raise
        _close_output()
        raise NotWritten(f"{words}; make room, or write it elsewhere") from error


def _close_output() -> None:
    """Drop what is left of the output: Python writes it again at its end, and would complain."""
    assert sys.stdout is not None, "it was written to"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _message(error: BaseException, folder: Path | None) -> str:
    text = str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
    if isinstance(error, DiskFull) or folder is None:
        return text
    causes = [error, *_chain(error)]
    with suppress(OSError):  # The disk cannot be asked, so that nothing is known about it.
        full = next((words for cause in causes if (words := full_disk(cause, folder))), None)
        return f"{full}\n{text}" if full else text
    return text


def _chain(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


def _cause(error: BaseException) -> BaseException:
    return [error, *_chain(error)][-1]


def _written_log(text: str, folder: Path | None) -> Path | None:
    """Write the traceback to the output folder, or else to the folder for temporary files.

    Returns:
        the file; None if neither could be written.
    """
    if folder is not None and folder.is_dir():
        log = folder / ERROR_LOG
        try:
            log.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            # A full disk leaves an empty file.
            with suppress(OSError):
                log.unlink()
        else:
            return log
    try:
        descriptor, name = tempfile.mkstemp(prefix="rlhf_ray_error_", suffix=".log")
    except OSError:
        return None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        return None
    return Path(name)
