"""Answers of several models at once, piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from rlhf_ray.chat.endpoint import EndpointFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A piece of one model's answer.

    Attributes:
        index: position of the model.
        text: empty if there was only an error.
        error: ends this answer.
    """

    index: int
    text: str = ""
    error: EndpointFailed | None = None


# Begins an answer; called in the thread that reads it.
Begin = Callable[[], Iterator[str]]


def pieces_of(begins: Sequence[Begin]) -> Generator[Piece, None, None]:
    """Yield the pieces of all answers, in the order in which they arrive.

    A single answer is read in this thread, so that Ctrl-C stops it at once; several are read in
    one thread each. Closing the generator ends them all.
    """
    return _read(0, begins[0]) if len(begins) == 1 else _read_together(begins)


def _read(index: int, begin: Begin) -> Generator[Piece, None, None]:
    try:
        for text in begin():
            yield Piece(index=index, text=text)
    except EndpointFailed as error:
        yield Piece(index=index, error=error)


def _read_together(begins: Sequence[Begin]) -> Generator[Piece, None, None]:
    pieces: queue.Queue[Piece | None] = queue.Queue()
    is_over = threading.Event()

    def read(index: int, begin: Begin) -> None:
        with closing(_read(index, begin)) as found:
            for piece in found:
                pieces.put(piece)
                if is_over.is_set():
                    break
        pieces.put(None)

    for index, begin in enumerate(begins):
        threading.Thread(target=read, args=(index, begin), daemon=True).start()
    num_left = len(begins)
    try:
        while num_left:
            piece = pieces.get()
            if piece is None:
                num_left -= 1
            else:
                yield piece
    finally:
        is_over.set()
