"""The start-up of the command, from its first instruction to the end of the first step, by part.

    python -m benchmarks.startup MODEL REPEATS RESULT

The recipe is `demo`, whose model and first step take hardly any time. Its model is made before.
"""

from __future__ import annotations

from benchmarks.command import Records, run
from benchmarks.work import arguments, write_result
from rlhf_ray.models.builtin import resolve_model_path


def main() -> None:
    _, repeats, result = arguments()
    resolve_model_path("builtin:arithmetic", seed=0, report=print)
    measured: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, seconds in parts(run(["recipe=demo", "num_steps=1"])).items():
            measured.setdefault(name, []).append(seconds)
    write_result(result, measured)


def parts(records: Records) -> dict[str, float]:
    """Seconds of the parts, of the slowest actor of every role, and of the end of the run."""
    startup, step = records.startup, records.steps[0]
    return {
        "startup_s": startup["total_s"],
        **{f"startup_{name}": seconds for name, seconds in startup["parts"].items()},
        **{
            f"startup_{role}_{part}": seconds
            for role, of_role in startup["roles"].items()
            for part, seconds in of_role.items()
        },
        "startup_rollout_s": step["time/generate_s"] + step["time/score_s"],
        # The model is saved, the actors and Ray end.
        "ending_s": records.total_s - startup["total_s"],
    }


if __name__ == "__main__":
    main()
