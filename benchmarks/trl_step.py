"""TRL's GRPO trainer on the work, with transformers' generate: a peer's step.

    python -m benchmarks.trl_step MODEL REPEATS RESULT

Set up to be fast on this work: no recomputed activations, no reference, nothing logged or saved.
The first step is a warm-up.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.work import (
    NUM_PROMPTS,
    RESPONSE_TOKENS,
    SAMPLES_PER_PROMPT,
    arguments,
    work_config,
    work_prompts,
    write_result,
)


class StepTimes(TrainerCallback):
    """Seconds of every step, and how long the responses were."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def main() -> None:
    model_path, repeats, result = arguments()
    config = work_config(model_path)
    torch.set_num_threads(config.training.cpu_threads)
    lengths: set[int] = set()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.update(len(ids) for ids in completion_ids)
        return [float(sum(ids) % 7) for ids in completion_ids]

    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            # Counts samples, not prompts.
            per_device_train_batch_size=NUM_PROMPTS * SAMPLES_PER_PROMPT,
            num_generations=SAMPLES_PER_PROMPT,
            max_completion_length=RESPONSE_TOKENS,
            generation_kwargs={"min_new_tokens": RESPONSE_TOKENS},
            gradient_checkpointing=False,
            beta=0.0,
            learning_rate=config.training.learning_rate,
            max_steps=repeats + 1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(model_path),
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": p.text} for p in work_prompts(config)]),
            callbacks=[times],
        )
        trainer.train()
    assert lengths == {RESPONSE_TOKENS}, f"responses of {sorted(lengths)} tokens"
    write_result(result, {"trl_step_s": times.seconds[1:]})


if __name__ == "__main__":
    main()
