"""Asynchronous against synchronous training, with engine and learner on a core each.

    python -m benchmarks.overlap MODEL REPEATS RESULT

The work is that of the recipe `demo` with more prompts, so that a step computes more than the
driver adds. Both runs are of the same length and follow each other in every repeat.
"""

from __future__ import annotations

from benchmarks.command import run
from benchmarks.work import arguments, write_result

_WARM_UP_STEPS, _NUM_STEPS = 3, 13
_WORK = (
    "recipe=demo",
    "prompts_per_step=64",
    "algorithm.kl_coefficient=0",
    "generation.cpu_threads=1",
    "training.cpu_threads=1",
    f"num_steps={_NUM_STEPS}",
)
_STALENESS = {"synchronous": 0, "asynchronous": 1}


def main() -> None:
    _, repeats, result = arguments()
    measured: dict[str, list[float]] = {f"{name}_step_s": [] for name in _STALENESS}
    for _ in range(repeats):
        for name, staleness in _STALENESS.items():
            steps = run([*_WORK, f"max_staleness={staleness}"]).steps[_WARM_UP_STEPS:]
            measured[f"{name}_step_s"] += [step["time/step_s"] for step in steps]
    write_result(result, measured)


if __name__ == "__main__":
    main()
