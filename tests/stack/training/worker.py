"""One process of the training tests: runs the scenarios of its world size, saves the results.

    python -m tests.stack.training.worker RANK WORLD_SIZE MASTER_PORT FOLDER TABLE [SCENARIO ...]

A process costs seconds of imports, so that all scenarios share it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from tests.stack.training.rank import Rank
from tests.stack.training.table import TABLES


def main() -> None:
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    folder, table, only = Path(sys.argv[4]), sys.argv[5], sys.argv[6:]
    here = Rank(rank, world_size, port, folder)
    results = {}
    for name, scenario in TABLES[table][world_size].items():
        if not only or name in only:
            start = time.perf_counter()
            print(f"scenario {name}", flush=True)
            results[name] = scenario(here)
            print(f"scenario {name} took {time.perf_counter() - start:.2f} s", flush=True)
    torch.save(results, folder / f"results_{world_size}_{rank}.pt")


if __name__ == "__main__":
    main()
