"""Files without a name, for what a process keeps on disk while it runs."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.disk_space import full_disk_said

_WRITTEN_AT_ONCE = 2**20


class ScratchFile:
    """Bytes that are appended, and read at any place, without staying in memory.

    The file has no name: the system frees its space when the process ends, however that happens.
    It is read by calls and not mapped, so that pages that were read are no memory of the process.

    Args:
        folder: on a disk with enough space; None for that of temporary files.

    Raises:
        RequestError: no file can be made there.
        DiskFull: the disk is full.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        try:
            with full_disk_said(self._folder):
                file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise RequestError(
                f"examples.scratch_dir is {str(self._folder)!r}: the tokens of examples cannot be "
                f"written there ({error.strerror or error}); name a folder that this user can write"
            ) from error
        self._descriptor = file.fileno()
        self._close = weakref.finalize(self, file.close)
        self._unwritten = bytearray()
        self._num_written = 0

    def __len__(self) -> int:
        """Number of bytes."""
        return self._num_written + len(self._unwritten)

    def append(self, content: bytes) -> None:
        """Add bytes at the end.

        Raises:
            DiskFull: the disk is full; the message names the folder.
        """
        self._unwritten += content
        if len(self._unwritten) >= _WRITTEN_AT_ONCE:
            self._flush()

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from byte `start` on."""
        if start + size > self._num_written:
            self._flush()
        found = bytearray()
        # One call reads 2 GiB at most.
        while len(found) < size:
            piece = os.pread(self._descriptor, size - len(found), start + len(found))
            assert piece, f"{size} bytes from {start} on, of {self._num_written}"
            found += piece
        return bytes(found)

    def _flush(self) -> None:
        view = memoryview(bytes(self._unwritten))
        with full_disk_said(self._folder):
            while view:
                written = os.pwrite(self._descriptor, view, self._num_written)
                self._num_written += written
                view = view[written:]
        self._unwritten.clear()
