"""This project's own steps, read from the metrics of a run of the command.

    python -m benchmarks.own_step MODEL REPEATS RESULT

The work gives the time of a step and of a publish; the tiny model of the recipe `demo`, whose
parts take hardly any time, gives what the driver adds to its parts.
"""

from __future__ import annotations

from typing import Any

from benchmarks.command import run
from benchmarks.work import arguments, overrides, write_result

_PARTS = ("generate", "score", "reference", "update", "publish")
# First touch of memory, among it both of the segments that weights pass through in turn; kernels
# chosen, caches of prompts filled.
_WARM_UP_STEPS = 2
_TINY_WARM_UP_STEPS, _TINY_STEPS = 5, 15


def main() -> None:
    model, repeats, result = arguments()
    num_steps, num_tiny = _WARM_UP_STEPS + repeats, _TINY_WARM_UP_STEPS + _TINY_STEPS
    work = run([*overrides(model), f"num_steps={num_steps}"]).steps[_WARM_UP_STEPS:]
    tiny = run(["recipe=demo", f"num_steps={num_tiny}"]).steps[_TINY_WARM_UP_STEPS:]
    measured = {
        "step_s": [step["time/step_s"] for step in work],
        "publish_s": [step["time/publish_s"] for step in work],
        **{f"step_{part}_s": [step[f"time/{part}_s"] for step in work] for part in _PARTS},
        "tiny_step_s": [step["time/step_s"] for step in tiny],
        "overhead_s": [overhead(step) for step in tiny],
    }
    write_result(result, measured)


def overhead(step: dict[str, Any]) -> float:
    """What a step takes beyond its parts."""
    return step["time/step_s"] - sum(step[f"time/{part}_s"] for part in _PARTS)


if __name__ == "__main__":
    main()
