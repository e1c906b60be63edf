"""Starts the processes of the training tests once per session and hands out their results."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.testing.tiny import tiny_random
from tests.stack.training.samples import NUM_PORTS, VOCABULARY, make_samples

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 280.0
# Fixtures that are results of the table of the same name.
FIXTURES = (
    "seen",
    "followed",
    "compared",
    "partial",
    "restored",
    "relaid",
    "relaid_all",
    "bases",
    "paired",
)
_FOUR = ("4_0", "4_1", "4_2", "4_3")
SIZES = TinySizes(
    hidden=32, intermediate=64, num_layers=2, num_heads=4, num_key_value_heads=2, head_size=8
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Results by scenario name: of the single process, and of each of two processes."""

    folder: Path
    one: dict[str, Any]
    two: tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Divided:
    """Results by scenario name: of the single process, and of each of four processes."""

    one: dict[str, Any]
    four: tuple[dict[str, Any], ...]


class Runs:
    """One process alone and two together, which run the tables of scenarios one after the other.

    A process costs seconds of imports, so that all tables share the three. Results of a table are
    written when it is through, and the tests of it run while the next one does.

    Args:
        make: writes the inputs of a table to its folder.
    """

    def __init__(
        self, folder: Path, tables: Sequence[str], make: Callable[[Path], None] | None = None
    ) -> None:
        self._folder, self._seen = folder, dict[str, Seen]()
        for table in tables:
            (make or make_inputs)(folder / table)
        count = NUM_PORTS * len(tables)
        ports = {1: free_ports(count), 2: free_ports(count)}
        self._processes = {
            f"{world_size}_{rank}": start_worker(
                folder, rank, world_size, ports[world_size], tables
            )
            for world_size, rank in ((2, 0), (2, 1), (1, 0))
        }

    def seen(self, table: str) -> Seen:
        """Wait for the results of a table."""
        if table not in self._seen:
            folder = self._folder / table
            files = [folder / f"results_{name}.pt" for name in self._processes]
            deadline = time.monotonic() + DEADLINE_S
            while not all(file.exists() for file in files):
                check(self._processes, self._folder)
                assert time.monotonic() < deadline, late(self._processes, self._folder)
                time.sleep(0.1)
            one, *two = (load_results(folder, name) for name in ("1_0", "2_0", "2_1"))
            self._seen[table] = Seen(folder=folder, one=one, two=(two[0], two[1]))
        return self._seen[table]

    def close(self) -> None:
        end(self._processes)


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """The tables that the tests of this session ask for, in the order of their tests."""
    wanted = dict.fromkeys(
        name
        for item in request.session.items
        if isinstance(item, pytest.Function)
        for name in item.fixturenames
        if name in FIXTURES
    )
    runs = Runs(tmp_path_factory.mktemp("training"), list(wanted))
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def seen(runs: Runs) -> Seen:
    """Results of every scenario on 1 rank and on 2 ranks."""
    return runs.seen("seen")


@pytest.fixture(scope="session")
def followed(runs: Runs) -> Seen:
    """Results of the scenarios of EMAs."""
    return runs.seen("followed")


@pytest.fixture(scope="session")
def compared(runs: Runs) -> Seen:
    """Results of the scenarios that learn from preferences."""
    return runs.seen("compared")


@pytest.fixture(scope="session")
def partial(runs: Runs) -> Seen:
    """Results of the scenarios that train a part of a model."""
    return runs.seen("partial")


@pytest.fixture(scope="session")
def restored(runs: Runs) -> Seen:
    """Results of the scenarios of checkpoint files."""
    return runs.seen("restored")


@pytest.fixture(scope="session")
def relaid(runs: Runs) -> Seen:
    """Results of the quick cases of checkpoints that another layout goes on from."""
    return runs.seen("relaid")


@pytest.fixture(scope="session")
def relaid_all(runs: Runs) -> Seen:
    """Results of all cases of checkpoints that another layout goes on from."""
    return runs.seen("relaid_all")


@pytest.fixture(scope="session")
def bases(runs: Runs) -> Seen:
    """Results of the scenarios of checkpoints without their base model."""
    return runs.seen("bases")


@pytest.fixture(scope="session")
def paired(runs: Runs) -> Seen:
    """Results of the quick scenarios of two ranks that hold slices of a model."""
    return runs.seen("paired")


@pytest.fixture(scope="session")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Divided:
    """Results of the scenarios of ranks that compute samples together, on 1 rank and on 4."""
    return _on_one_and_four(tmp_path_factory.mktemp("divided"), "divided")


@pytest.fixture(scope="session")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Divided:
    """Results of the scenarios of ranks that hold slices of a model, on 1 rank and on 4."""
    return _on_one_and_four(tmp_path_factory.mktemp("sliced"), "sliced")


def _on_one_and_four(folder: Path, table: str) -> Divided:
    make_inputs(folder / table)
    ports = {size: free_ports(NUM_PORTS) for size in (4, 1)}
    processes = {
        f"{size}_{rank}": start_worker(folder, rank, size, ports[size], [table])
        for size in (4, 1)
        for rank in range(size)
    }
    # Five processes on two cores.
    wait_for(processes, folder, timeout_s=4 * DEADLINE_S)
    one, *four = (load_results(folder / table, name) for name in ("1_0", *_FOUR))
    return Divided(one=one, four=tuple(four))


def make_inputs(folder: Path) -> None:
    """Make the models and samples of a table; its scenarios write below the folder, too."""
    folder.mkdir(parents=True, exist_ok=True)
    make_models(folder)
    torch.save(make_samples(), folder / "samples.pt")


def load_results(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"results_{name}.pt", weights_only=True)


def make_models(folder: Path) -> None:
    for seed, name in enumerate(("policy", "other_policy", "backbone")):
        tiny_random(folder / name, seed=seed, vocab_size=VOCABULARY, sizes=SIZES)
    reward_model = LlamaForSequenceClassification.from_pretrained(folder / "backbone", num_labels=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        reward_model.score.weight.normal_(std=0.1, generator=generator)
    reward_model.save_pretrained(folder / "reward_model")


def start_worker(
    folder: Path, rank: int, world_size: int, port: int, tables: Sequence[str]
) -> subprocess.Popen[bytes]:
    """Start a process; the inputs and results of a table are in the folder of its name."""
    arguments = [str(argument) for argument in (rank, world_size, port, folder, *tables)]
    with (folder / f"log_{world_size}_{rank}.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.stack.training.worker", *arguments],
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def wait_for(
    processes: dict[str, subprocess.Popen[bytes]], folder: Path, *, timeout_s: float = DEADLINE_S
) -> None:
    """Wait for all processes; if one fails, end the others and show its output."""
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes.values()):
            check(processes, folder)
            assert time.monotonic() < deadline, late(processes, folder)
            time.sleep(0.1)
        check(processes, folder)
    finally:
        end(processes)


def check(processes: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    failed = [name for name, process in processes.items() if process.poll()]
    assert not failed, report(failed[0], folder)


def late(processes: dict[str, subprocess.Popen[bytes]], folder: Path) -> str:
    return "\n".join(report(name, folder) for name in processes)


def end(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        process.kill()
        process.wait()


def report(name: str, folder: Path) -> str:
    log = (folder / f"log_{name}.txt").read_text(errors="replace")
    # Every process group that a worker has joined puts the rank before each line of a traceback.
    log = re.sub(r"\[rank\d+\]: ", "", log)
    return f"worker {name} (world size, rank) failed or was late; its log ends:\n{log[-4000:]}"


def free_ports(count: int) -> int:
    """The first of `count` free neighbouring ports, below the ephemeral ones."""
    for _ in range(50):
        first = random.SystemRandom().randrange(12_000, 32_000 - count)
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError(f"found no {count} neighbouring free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
