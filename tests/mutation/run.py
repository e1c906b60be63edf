"""Breaks the algorithms in many small ways and sees whether the tests notice.

    python -m tests.mutation.run [--number 60] [--seed 0] [--workers 2] [--output FILE]

Every mutant is one wrong change to one file of `rlhf_ray/algorithms`. It is killed when a test of
`tests/unit/algorithms` fails: the bandit, or a comparison with the ground truth. Survivors are
named: each is a hole in the tests, or a change that changes nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation.mutate import Mutant, mutants

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "rlhf_ray" / "algorithms"
# What no test of the algorithms is about: checks of shapes, and the controllers' own asserts.
NOT_MUTATED = ("__init__.py", "checks.py")
BANDIT = "tests/unit/algorithms/test_bandit.py"
GROUND_TRUTH = "tests/unit/algorithms"
TIMEOUT_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "mutation.json")
    options = parser.parse_args()
    files = [file for file in PACKAGE.rglob("*.py") if file.name not in NOT_MUTATED]
    drawn = mutants(files, number=options.number, seed=options.seed)
    with ThreadPoolExecutor(max_workers=options.workers) as pool:
        verdicts = list(pool.map(verdict, drawn))
    survivors = [str(m) for m, v in zip(drawn, verdicts, strict=True) if v == "survived"]
    report = {
        "killed": len(drawn) - len(survivors),
        "total": len(drawn),
        "killed_by_bandit": verdicts.count("bandit"),
        "survivors": survivors,
        "seed": options.seed,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    sys.exit(1 if survivors else 0)


def verdict(mutant: Mutant) -> str:
    """The tests that notice the mutant: "bandit" or "ground truth"; "survived" if none does."""
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder)
        target = overlay / "rlhf_ray"
        # Links to everything, but for the one file that is wrong.
        wrong = mutant.file.relative_to(PACKAGE.parent)
        for parent in reversed(wrong.parents):
            child = wrong.relative_to(parent).parts[0]
            _link(PACKAGE.parent / parent, target / parent, but=(child,))
        (target / wrong).write_text(mutant.source)
        for name in ("conf", "tests", "pyproject.toml"):
            (overlay / name).symlink_to(REPOSITORY / name)
        for who, arguments in (
            ("bandit", [BANDIT, "-k", "0]"]),
            ("ground truth", [GROUND_TRUTH, "--ignore", BANDIT]),
        ):
            if fails(overlay, arguments):
                print(f"{who}: {mutant}", flush=True)
                return who
    print(f"SURVIVED: {mutant}", flush=True)
    return "survived"


def fails(folder: Path, arguments: list[str]) -> bool:
    """Whether a test fails or exceeds its time limit with this copy of the package."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    if ended.returncode not in (0, 1, 2):
        output = ended.stdout.decode()[-2000:]
        raise RuntimeError(f"pytest ended with {ended.returncode}:\n{output}")
    return ended.returncode != 0


def _link(source: Path, target: Path, *, but: tuple[str, ...]) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name not in (*but, "__pycache__"):
            (target / entry.name).symlink_to(entry)


if __name__ == "__main__":
    main()
