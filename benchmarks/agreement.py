"""Do the stages here and TRL's trainers have the same loss at every step? Writes a JSON file.

    python -m benchmarks.agreement [--stages sft reward_model preference] [--output FILE]

Both get the same rows in the same order, the same model and the same settings of the optimizer
(`agreement_work`). The stages run as the command, TRL's trainers in a process each. The exit
status is 1 where a loss of any step is further apart than the tolerance.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.agreement_work import NUM_STEPS, STAGES, make_model, overrides, write_rows
from benchmarks.command import run
from benchmarks.run import machine, run_to_end

# Nats of SFT, and of the log-sigmoids of the other two.
TOLERANCE = 1e-3


def compare(own: Sequence[float], trl: Sequence[float]) -> dict[str, Any]:
    """Both losses of every step, and whether all are within the tolerance.

    Returns:
        `own`, `trl`, `largest_difference`, its `step` (from 1) and `agrees`. A loss that is not
        finite is infinitely far from every other.

    Raises:
        ValueError: one of them has more steps than the other, or not all.
    """
    if len(own) != NUM_STEPS or len(trl) != NUM_STEPS:
        raise ValueError(f"losses of {len(own)} steps here, {len(trl)} of TRL, {NUM_STEPS} wanted")
    differences = [
        abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf
        for a, b in zip(own, trl, strict=True)
    ]
    largest = max(differences)
    return {
        "own": list(own),
        "trl": list(trl),
        "largest_difference": largest,
        "step": differences.index(largest) + 1,
        "agrees": largest <= TOLERANCE,
    }


def stage_losses(stage: str) -> tuple[list[float], list[float]]:
    """Losses of every step: of the command, and of TRL.

    Raises:
        subprocess.CalledProcessError: the command failed.
        SystemExit: TRL's trainer failed, or was late.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(stage, folder / "model")
        rows = write_rows(stage, folder / "rows.jsonl")
        own = [step["train/loss"] for step in run(overrides(stage, model, rows)).steps]
        result, log = folder / "trl.json", folder / "trl.txt"
        with log.open("wb") as output:
            part = ("-m", f"{__package__}.agreement_trl", stage, str(model), str(result))
            status = run_to_end([sys.executable, *part], output)
        if status != 0:
            raise SystemExit(f"TRL failed:\n{log.read_text(errors='replace')[-6000:]}")
        return own, json.loads(result.read_text())


def versions() -> dict[str, str]:
    """Of the libraries that the numbers depend on."""
    return {name: version(name) for name in ("trl", "transformers", "torch", "deepspeed")}


def line(stage: str, compared: dict[str, Any]) -> str:
    """For people."""
    own = compared["own"]
    verdict = "agrees" if compared["agrees"] else "DISAGREES"
    return (
        f"{stage:14}loss {own[0]:.4f} to {own[-1]:.4f}, furthest from TRL's at step "
        f"{compared['step']}: {compared['largest_difference']:.1e} ({verdict})"
    )


def main() -> int:
    options = parse()
    stages = {}
    for stage in options.stages:
        stages[stage] = compare(*stage_losses(stage))
        print(line(stage, stages[stage]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "tolerance": TOLERANCE,
        "stages": stages,
        "versions": versions(),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}")
    return 0 if all(compared["agrees"] for compared in stages.values()) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--output", type=Path, default=Path("outputs/agreement.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
