"""A write in a thread: its result, its failure, and the wait for it."""

from __future__ import annotations

import threading

import pytest

from rlhf_ray.checkpoint_files.background import BackgroundWrite

PATIENCE_S = 30.0


def test_the_result_is_there_when_the_write_has_ended():
    may_end = threading.Event()

    def write() -> str:
        may_end.wait(PATIENCE_S)
        return "written"

    writing = BackgroundWrite(write)
    assert writing.result(wait_s=0.0) is None
    assert writing.result(wait_s=0.01) is None
    may_end.set()
    assert writing.result(wait_s=PATIENCE_S) == "written"
    assert writing.result(wait_s=0.0) == "written"


def test_a_failure_is_raised_where_the_result_is_asked_for():
    def write() -> str:
        raise OSError(28, "No space left on device")

    writing = BackgroundWrite(write)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            writing.result(wait_s=PATIENCE_S)


def test_a_thread_that_hangs_does_not_keep_the_process():
    writing = BackgroundWrite(lambda: threading.Event().wait(PATIENCE_S))
    assert writing._thread.daemon
