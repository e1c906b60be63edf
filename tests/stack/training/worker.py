"""One process of the training tests: runs the scenarios of its world size, saves the results.

    python -m tests.stack.training.worker RANK WORLD_SIZE MASTER_PORT FOLDER TABLE [TABLE ...]

The inputs of a table are in FOLDER/TABLE, and so are its results. A process costs seconds of
imports, so that all scenarios share it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from tests.stack.training.rank import Rank
from tests.stack.training.samples import NUM_PORTS
from tests.stack.training.table import TABLES


def main() -> None:
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    folder, tables = Path(sys.argv[4]), sys.argv[5:]
    for number, table in enumerate(tables):
        run(table, Rank(rank, world_size, port + number * NUM_PORTS, folder / table))


def run(table: str, here: Rank) -> None:
    results = {}
    for name, scenario in TABLES[table][here.world_size].items():
        start = time.perf_counter()
        print(f"scenario {table}/{name}", flush=True)
        results[name] = scenario(here)
        print(f"scenario {table}/{name} took {time.perf_counter() - start:.2f} s", flush=True)
    # A file that is there is whole.
    file = here.folder / f"results_{here.world_size}_{here.rank}.pt"
    torch.save(results, file.with_suffix(".partial"))
    file.with_suffix(".partial").rename(file)


if __name__ == "__main__":
    main()
