"""Measures everything, in turn, round after round; prints a table and writes a JSON file.

    python -m benchmarks.run [--rounds 3] [--model FOLDER] [--output FILE]
                             [--only PART ...] [--without PART ...]

In turn, because the speed of a shared machine drifts: what is compared was measured side by side.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from benchmarks.aims import comparisons

# Part to the repeats in one round, after its own warm-up.
PARTS = {
    "raw_generate": 2,
    "raw_train": 2,
    "own_step": 3,
    "trl_step": 1,
    "natural": 1,
    "trl_natural": 1,
    "overlap": 1,
    "publish": 2,
    "driver_cpu": 3,
    "startup": 2,
}
PART_DEADLINE_S = 1800.0

# Medians that the file names at its top.
KEYS = (
    "raw_generate_s",
    "raw_train_s",
    "step_s",
    "trl_step_s",
    "publish_s",
    "overhead_s",
    "startup_s",
)


def main() -> None:
    options = parse()
    measured: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for part, repeats in PARTS.items():
            if part in options.only and part not in options.without:
                print(f"round {number + 1} of {options.rounds}: {part}", flush=True)
                for name, seconds in run_part(part, options.model, repeats).items():
                    measured.setdefault(name, []).extend(seconds)
                # After each part, because a later one may fail and parts take minutes.
                write(options.output, measured)
    medians = medians_of(measured)
    print("\n".join(comparisons(medians)))
    print(table(medians, measured))
    print(f"written to {options.output}")


def medians_of(measured: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def write(file: Path, measured: dict[str, list[float]]) -> None:
    """Write what has been measured so far, with the named medians on top."""
    medians = medians_of(measured)
    report = {name: medians[name] for name in KEYS if name in medians}
    report |= {
        "all": measured,
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="outputs/models/smollm2-135m")
    parser.add_argument("--only", nargs="+", default=tuple(PARTS), choices=tuple(PARTS))
    parser.add_argument("--without", nargs="*", default=[], choices=tuple(PARTS))
    parser.add_argument("--output", type=Path, default=Path("outputs/bench.json"))
    return parser.parse_args()


def run_part(part: str, model: str, repeats: int) -> dict[str, list[float]]:
    """Seconds by name, from a process of its own.

    Raises:
        SystemExit: it failed, or took longer than its deadline; its output ends the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        command = [sys.executable, "-m", f"benchmarks.{part}", model, str(repeats), str(result)]
        with log.open("wb") as output:
            status = run_to_end(command, output)
        if status != 0:
            raise SystemExit(f"{part} failed:\n{log.read_text(errors='replace')[-6000:]}")
        return json.loads(result.read_text())


def run_to_end(command: list[str], output: IO[bytes]) -> int:
    """Exit status; the command and all that it started are ended when it is late."""
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout=PART_DEADLINE_S)
    except subprocess.TimeoutExpired:
        output.write(f"\nlonger than {PART_DEADLINE_S:g} s\n".encode())
        return 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def table(medians: dict[str, float], measured: dict[str, list[float]]) -> str:
    lines = [f"{'':34}{'median':>10}{'least':>10}{'most':>10}   seconds, or ms where named"]
    for name, median in medians.items():
        seconds = measured[name]
        lines.append(f"{name:34}{median:10.3f}{min(seconds):10.3f}{max(seconds):10.3f}")
    return "\n".join(lines)


def machine() -> str:
    """Processor, number of cores, system."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    return f"{processor}, {cores} cores, {platform.system()} {platform.release()}"


if __name__ == "__main__":
    main()
