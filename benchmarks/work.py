"""The work that everything here is measured on: one step of GRPO on SmolLM2-135M.

32 rollouts of exactly 64 tokens, 4 per prompt, in float32, without a KL penalty, one optimiser
step. Every part runs in a process of its own and writes what it measured to a JSON file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.records import Prompt, RolloutGroup

NUM_PROMPTS = 8
SAMPLES_PER_PROMPT = 4
RESPONSE_TOKENS = 64


def overrides(model: str) -> list[str]:
    """What the command is told to do this work."""
    return [
        "recipe=smollm2_grpo",
        f"model.path={model}",
        f"prompts_per_step={NUM_PROMPTS}",
        f"samples_per_prompt={SAMPLES_PER_PROMPT}",
        f"generation.max_response_tokens={RESPONSE_TOKENS}",
        "generation.ignore_eos=true",
    ]


def work_config(model: str) -> Config:
    return load_config(overrides(model))


def work_prompts(config: Config) -> list[Prompt]:
    """The prompts of the run's first step."""
    prompts = load_prompts(config.data, load_tokenizer(config.model), seed=config.seed)
    stream = PromptStream(prompts, seed=config.seed, shuffle=config.data.shuffle)
    return [stream.next() for _ in range(NUM_PROMPTS)]


def rollout_group(prompt: Prompt, vocab_size: int) -> RolloutGroup:
    """A group as the work has it, of made-up tokens and rewards."""
    generator = torch.Generator().manual_seed(prompt.stream_index)
    num_prompt, length = len(prompt.token_ids), len(prompt.token_ids) + RESPONSE_TOKENS
    rows = torch.randint(0, vocab_size, (SAMPLES_PER_PROMPT, length), generator=generator)
    rows[:, :num_prompt] = torch.tensor(prompt.token_ids)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[:, num_prompt:] = True
    rewards = torch.rand(SAMPLES_PER_PROMPT, generator=generator, dtype=torch.float64)
    return RolloutGroup(
        prompt=prompt,
        sample_indices=tuple(range(SAMPLES_PER_PROMPT)),
        token_ids=rows.flatten(),
        lengths=torch.full((SAMPLES_PER_PROMPT,), length),
        loss_mask=mask.flatten(),
        generator_logprobs=torch.where(mask.flatten(), -10.0, 0.0),
        support_token_ids=None,
        weight_versions=torch.where(mask.flatten(), 0, -1),
        responses=("",) * SAMPLES_PER_PROMPT,
        finish_reasons=("length",) * SAMPLES_PER_PROMPT,
        rewards=rewards,
        reward_parts={"made_up": rewards},
        failures=(),
    )


def arguments() -> tuple[str, int, Path]:
    """MODEL REPEATS RESULT, the command line of every part."""
    if len(sys.argv) != 4:
        raise SystemExit(f"usage: python -m {__package__}.PART MODEL REPEATS RESULT")
    return sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


def write_result(path: Path, measured: dict[str, list[float]]) -> None:
    """Seconds by name, one entry per repeat."""
    path.write_text(json.dumps(measured) + "\n")
