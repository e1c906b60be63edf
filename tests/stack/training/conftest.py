"""Starts the processes of the training tests once per session and hands out their results."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.testing.tiny import tiny_random
from tests.stack.training.samples import VOCABULARY, make_samples

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 280.0
# One for every role of every scenario.
NUM_PORTS = 130
SIZES = TinySizes(
    hidden=32, intermediate=64, num_layers=2, num_heads=4, num_key_value_heads=2, head_size=8
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Results by scenario name: of the single process, and of each of two processes."""

    folder: Path
    one: dict[str, Any]
    two: tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Results of every scenario on 1 rank and on 2 ranks."""
    return run_scenarios(tmp_path_factory.mktemp("training"), "seen")


@pytest.fixture(scope="session")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Results of the scenarios of EMAs."""
    return run_scenarios(tmp_path_factory.mktemp("following"), "followed")


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Results of the scenarios that learn from preferences."""
    return run_scenarios(tmp_path_factory.mktemp("compared"), "compared")


def run_scenarios(folder: Path, table: str, make: Callable[[Path], None] | None = None) -> Seen:
    """Run a table; `make` writes the models to the folder, by default those of `make_models`."""
    (make or make_models)(folder)
    torch.save(make_samples(), folder / "samples.pt")
    ports = {1: free_ports(NUM_PORTS), 2: free_ports(NUM_PORTS)}
    processes = {
        f"{world_size}_{rank}": start_worker(folder, rank, world_size, ports[world_size], table)
        for world_size, rank in ((2, 0), (2, 1), (1, 0))
    }
    wait_for(processes, folder)
    results = {
        name: torch.load(folder / f"results_{name}.pt", weights_only=True) for name in processes
    }
    return Seen(folder=folder, one=results["1_0"], two=(results["2_0"], results["2_1"]))


def make_models(folder: Path) -> None:
    for seed, name in enumerate(("policy", "other_policy", "backbone")):
        tiny_random(folder / name, seed=seed, vocab_size=VOCABULARY, sizes=SIZES)
    reward_model = LlamaForSequenceClassification.from_pretrained(folder / "backbone", num_labels=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        reward_model.score.weight.normal_(std=0.1, generator=generator)
    reward_model.save_pretrained(folder / "reward_model")


def start_worker(
    folder: Path, rank: int, world_size: int, port: int, table: str
) -> subprocess.Popen[bytes]:
    arguments = [str(argument) for argument in (rank, world_size, port, folder, table)]
    with (folder / f"log_{world_size}_{rank}.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.stack.training.worker", *arguments],
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def wait_for(processes: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait for all processes; if one fails, end the others and show its output."""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while any(process.poll() is None for process in processes.values()):
            failed = [name for name, process in processes.items() if process.poll()]
            assert not failed, report(failed[0], folder)
            assert time.monotonic() < deadline, "\n".join(report(n, folder) for n in processes)
            time.sleep(0.1)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for name, process in processes.items():
        assert process.returncode == 0, report(name, folder)


def report(name: str, folder: Path) -> str:
    log = (folder / f"log_{name}.txt").read_text(errors="replace")
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
