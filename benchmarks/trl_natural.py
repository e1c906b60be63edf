"""TRL's GRPO trainer where responses end by themselves: the work of `natural`.

python -m benchmarks.trl_natural MODEL REPEATS RESULT
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from benchmarks.natural import (
    MAX_TOKENS,
    NUM_PROMPTS,
    NUM_SAMPLES,
    WARM_UP_STEPS,
    make_model,
    ms_per_token,
    num_measured,
    overrides,
)
from benchmarks.trl_step import StepTimes
from benchmarks.work import arguments, write_result
from rlhf_ray.config.load import load_config
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.models.loading import load_tokenizer


def main() -> None:
    _, repeats, result = arguments()
    num_steps = WARM_UP_STEPS + num_measured(repeats)
    torch.set_num_threads(2)
    num_tokens: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        num_tokens.append(sum(len(ids) for ids in completion_ids))
        return [float(sum(ids) % 7) for ids in completion_ids]

    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        config = load_config(overrides(model, num_steps))
        tokenizer = load_tokenizer(config.model)
        prompts = load_prompts(config.data, tokenizer, seed=config.seed).prompts
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            processing_class=tokenizer,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                per_device_train_batch_size=NUM_PROMPTS * NUM_SAMPLES,
                num_generations=NUM_SAMPLES,
                max_completion_length=MAX_TOKENS,
                gradient_checkpointing=False,
                beta=0.0,
                learning_rate=config.training.learning_rate,
                max_steps=num_steps,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in prompts]),
            callbacks=[times],
        )
        trainer.train()
    assert len(num_tokens) == num_steps == len(times.seconds)
    measured = list(zip(times.seconds, num_tokens, strict=True))[WARM_UP_STEPS:]
    write_result(
        result,
        {
            "trl_natural_step_s": [seconds for seconds, _ in measured],
            "trl_natural_ms_per_token": [ms_per_token(*step) for step in measured],
        },
    )


if __name__ == "__main__":
    main()
