"""Measurement of whether, and how fast, this machine's engine runs a model: a separate program.

    python -m rlhf_ray.generation.speed REQUEST RESULT

A failed load may leave the process unusable, so every model gets a new process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.engine_arguments import engine_arguments
from rlhf_ray.generation.environment import engine_environment

_ROUNDS = 5
_SHOWN_CHARACTERS = 300
# Engine arguments that only training needs.
_OF_TRAINING = ("weight_transfer_config", "enable_sleep_mode")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Speed of the engine with a model.

    Attributes:
        tokens_per_s: generated tokens per second with all prompts at once, median of several
            rounds; None if the engine cannot run the model.
        error: why it cannot; empty if it can.
    """

    tokens_per_s: float | None
    error: str


def write_request(
    path: Path,
    generation: GenerationConfig,
    model: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_sequence_tokens: int,
) -> None:
    """Write the request file; `prompts` as token ids, answered all at once."""
    request = {
        "generation": dataclasses.asdict(generation),
        "model": dataclasses.asdict(model),
        "prompts": [list(prompt) for prompt in prompts],
        "max_sequence_tokens": max_sequence_tokens,
    }
    path.write_text(json.dumps(request), encoding="utf-8")


def read_result(path: Path) -> Speed:
    """Read the result file."""
    return Speed(**json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    """Load the model and answer the prompts a few times, each answer as long as the longest."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        speed = Speed(tokens_per_s=_measure(request), error="")
    # vLLM raises any kind of error for a model that it cannot run; the failure is the result.
    except Exception as error:  # noqa: BLE001
        words = " ".join(f"{type(error).__name__}: {error}".split())
        speed = Speed(tokens_per_s=None, error=words[:_SHOWN_CHARACTERS])
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(speed)), encoding="utf-8")


def _measure(request: dict[str, Any]) -> float:
    generation = GenerationConfig(**request["generation"])
    os.environ |= engine_environment(
        generation, engine_index=0, cpu_ids=sorted(os.sched_getaffinity(0))
    )
    # Run the engine in this process, so that its errors are raised here unchanged.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    arguments = engine_arguments(
        generation,
        ModelConfig(**request["model"]),
        max_sequence_tokens=request["max_sequence_tokens"],
    )
    llm = LLM(**{n: value for n, value in arguments.items() if n not in _OF_TRAINING})
    sampling = SamplingParams(
        temperature=0, max_tokens=generation.max_response_tokens, ignore_eos=True
    )
    prompts: Any = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
    # Warm-up: the first round may compile or allocate.
    llm.generate(prompts, sampling, use_tqdm=False)
    speeds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        taken = time.perf_counter() - start
        speeds.append(sum(len(answer.outputs[0].token_ids) for answer in answers) / taken)
    return statistics.median(speeds)


if __name__ == "__main__":
    main()
