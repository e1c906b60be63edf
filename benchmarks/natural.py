"""This project's steps where responses end by themselves.

    python -m benchmarks.natural MODEL REPEATS RESULT

The model is untrained and small. It ends an answer with about the same chance at every token, so
that lengths spread from 1 to the limit of 512, and four of five answers end before it. The prompts
are those of the recipe `demo`: 8 of them, 8 samples each. `trl_natural` is the same work in TRL.
What is compared is the time of a step per sampled token: no two trainers sample the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.command import run
from benchmarks.work import arguments, write_result
from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.testing.tiny import tiny_random

NUM_PROMPTS, NUM_SAMPLES, MAX_TOKENS = 8, 8, 512
WARM_UP_STEPS = 1
_STEPS_OF_A_REPEAT = 2
_SIZES = TinySizes(hidden=128, intermediate=256, num_layers=4)


def make_model(folder: Path) -> Path:
    """The same model every time."""
    return tiny_random(folder, sizes=_SIZES)


def overrides(model: Path, num_steps: int) -> list[str]:
    """The words that make the command do this work."""
    return [
        "recipe=demo",
        f"model.path={model}",
        f"prompts_per_step={NUM_PROMPTS}",
        f"samples_per_prompt={NUM_SAMPLES}",
        f"generation.max_response_tokens={MAX_TOKENS}",
        "algorithm.kl_coefficient=0",
        f"num_steps={num_steps}",
    ]


def num_measured(repeats: int) -> int:
    """Steps that are measured, by either trainer."""
    return repeats * _STEPS_OF_A_REPEAT


def ms_per_token(seconds: float, num_tokens: float) -> float:
    return 1000 * seconds / num_tokens


def main() -> None:
    _, repeats, result = arguments()
    num_steps = WARM_UP_STEPS + num_measured(repeats)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        steps = run(overrides(model, num_steps)).steps[WARM_UP_STEPS:]
    write_result(
        result,
        {
            "natural_step_s": [step["time/step_s"] for step in steps],
            "natural_ms_per_token": [
                ms_per_token(step["time/step_s"], step["tokens/generated"]) for step in steps
            ],
        },
    )


if __name__ == "__main__":
    main()
