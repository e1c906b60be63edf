"""Samples on disk, so that memory stays bounded for any size of data set.

SQLite. Every query follows a B-tree and none sorts, so that SQLite writes no temporary files. The
file is scratch: the next run deletes the file of an interrupted run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_ray.data.prepare.conversion.contents import Sample

_CACHE_KIB = 32 * 1024
# Most signatures to compare a sample with; further ones share a band only by chance.
_MAX_CANDIDATES = 64
_SCHEMA = """
CREATE TABLE ids (id TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE digests (
    dataset TEXT, digest BLOB, id TEXT NOT NULL, PRIMARY KEY (dataset, digest)) WITHOUT ROWID;
CREATE TABLE signatures (number INTEGER PRIMARY KEY, id TEXT NOT NULL, signature BLOB NOT NULL);
CREATE TABLE bands (key INTEGER, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID;
CREATE TABLE samples (number INTEGER PRIMARY KEY, id TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE parts (
    dataset TEXT, part TEXT, source TEXT, draw INTEGER, number INTEGER,
    PRIMARY KEY (dataset, part, source, draw, number)) WITHOUT ROWID;
CREATE TABLE places (
    dataset TEXT, part TEXT, place INTEGER, number INTEGER, epoch INTEGER,
    PRIMARY KEY (dataset, part, place, number, epoch)) WITHOUT ROWID;
"""


class SampleStore:
    """Kept samples, their digests and signatures, and their positions in the output files.

    Use it with `contextlib.closing`.

    Args:
        path: a file that does not exist yet.
        seed: for the order in which samples are drawn.
    """

    def __init__(self, path: Path, *, seed: int) -> None:
        self._seed = seed
        self._connection = sqlite3.connect(path, isolation_level=None)
        # The file need not survive a crash: no journal, no waiting for the disk.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._connection.execute(f"PRAGMA {pragma}").fetchall()
        self._connection.executescript(_SCHEMA)
        self._connection.execute("BEGIN")

    def close(self) -> None:
        self._connection.close()

    def add(self, sample: Sample, *, dataset: str, part: str) -> None:
        """Keep a sample; an id that exists already gets the suffix ~2, ~3, ..."""
        statement = (
            "INSERT INTO ids VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET count = count + 1 "
            "RETURNING count"
        )
        (count,) = self._connection.execute(statement, (sample.sample_id,)).fetchall()[0]
        if count > 1:
            sample = dataclasses.replace(sample, sample_id=f"{sample.sample_id}~{count}")
        record = json.dumps(sample.to_json(), ensure_ascii=False)
        inserted = self._connection.execute(
            "INSERT INTO samples (id, record) VALUES (?, ?)",
            # A lone surrogate, which JSON may hold and SQLite may not, is escaped.
            (sample.sample_id, record.encode("utf-8", "backslashreplace").decode()),
        )
        draw = number_of(self._seed, "draw", sample.sample_id)
        self._connection.execute(
            "INSERT INTO parts VALUES (?, ?, ?, ?, ?)",
            (dataset, part, sample.source, draw, inserted.lastrowid),
        )

    def first_with(self, dataset: str, digest: bytes, sample_id: str) -> str | None:
        """The id of the first sample with this digest; None if this sample is the first."""
        key = (dataset, digest)
        query = "SELECT id FROM digests WHERE dataset = ? AND digest = ?"
        found = self._connection.execute(query, key).fetchone()
        if found is None:
            self._connection.execute("INSERT INTO digests VALUES (?, ?, ?)", (*key, sample_id))
            return None
        return found[0]

    def with_bands(self, bands: Sequence[int]) -> list[tuple[str, bytes]]:
        """Ids and signatures of samples that share a band."""
        marks = ", ".join("?" * len(bands))
        query = (
            f"SELECT DISTINCT id, signature FROM bands JOIN signatures USING (number) "
            f"WHERE key IN ({marks}) LIMIT {_MAX_CANDIDATES}"
        )
        return self._connection.execute(query, bands).fetchall()

    def add_signature(self, sample_id: str, signature: bytes, bands: Sequence[int]) -> None:
        inserted = self._connection.execute(
            "INSERT INTO signatures (id, signature) VALUES (?, ?)", (sample_id, signature)
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO bands VALUES (?, ?)",
            [(band, inserted.lastrowid) for band in bands],
        )

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Number of samples by (data set, part, source)."""
        query = "SELECT dataset, part, source, COUNT(*) FROM parts GROUP BY dataset, part, source"
        return {(row[0], row[1], row[2]): row[3] for row in self._connection.execute(query)}

    def place(
        self, *, dataset: str, part: str, source: str, count: int, available: int, shuffle: bool
    ) -> None:
        """Assign positions in a file to `count` samples of a source, epoch after epoch.

        Every epoch takes the samples in the same random order, so that an incomplete last epoch
        is a random part. With `shuffle` positions are random over all sources. Without it the
        samples of an epoch keep the order in which they were added, and sources follow in the
        order of these calls.
        """
        (base,) = self._connection.execute(
            "SELECT COUNT(*) FROM places WHERE dataset = ? AND part = ?", (dataset, part)
        ).fetchone()
        query = (
            "SELECT number, id FROM parts JOIN samples USING (number) "
            "WHERE dataset = ? AND part = ? AND source = ? ORDER BY draw LIMIT ?"
        )
        for epoch in range(-(-count // available)):
            take = min(available, count - epoch * available)
            drawn = self._connection.cursor().execute(query, (dataset, part, source, take))
            for number, sample_id in drawn:
                key = f"{sample_id}#{epoch}"
                place = number_of(self._seed, "place", key) if shuffle else base + epoch
                self._connection.execute(
                    "INSERT INTO places VALUES (?, ?, ?, ?, ?)",
                    (dataset, part, place, number, epoch),
                )

    def placed(self, dataset: str, part: str) -> Iterator[tuple[str, int]]:
        """Yield the records in the order of their positions, each with its epoch, from 0."""
        query = (
            "SELECT record, epoch FROM places JOIN samples USING (number) "
            "WHERE dataset = ? AND part = ? ORDER BY place, number, epoch"
        )
        yield from self._connection.execute(query, (dataset, part))


def number_of(seed: int, purpose: str, text: str) -> int:
    """A pseudo-random number of 63 bits that depends only on the arguments."""
    key = f"{seed}/{purpose}/{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
