"""Forward and backward of the same samples in padded rows and in packed ones that share prompts.

    python -m benchmarks.layouts MODEL REPEATS RESULT

Layouts take turns, because the speed of a shared machine drifts. `auto` is what a run takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.raw_train import forward_and_backward
from benchmarks.work import arguments, work_config, write_result
from rlhf_ray.config.training import RoleConfig
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_policy
from rlhf_ray.records import Experience
from rlhf_ray.training.row_layout import row_layout

LAYOUTS = ("padded", "packed", "auto")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Groups of samples with a common prompt; lengths in tokens."""

    groups: int
    samples: int
    prompt: int
    answer: int


WORKS = {
    "group": Work(groups=1, samples=8, prompt=256, answer=64),
    # A batch of recipe=demo.
    "demo": Work(groups=16, samples=8, prompt=14, answer=4),
}


def main() -> None:
    model_path, repeats, result = arguments()
    config = work_config(resolve_model_path(model_path, seed=0))
    torch.set_num_threads(config.training.cpu_threads)
    model = load_policy(config.model, dtype=config.training.dtype).eval()
    vocab_size = model.get_input_embeddings().weight.shape[0]
    measured: dict[str, list[float]] = {}
    for name, work in WORKS.items():
        experience = made_up(work, vocab_size)
        for layout, seconds in interleaved(model, experience, config.model.attention, repeats):
            measured.setdefault(f"{name}_{layout}_s", []).append(seconds)
    for name, seconds in measured.items():
        print(f"{name:18} {statistics.median(seconds):8.4f}")
    write_result(result, measured)


def interleaved(
    model: torch.nn.Module, experience: Experience, attention: str, repeats: int
) -> Iterator[tuple[str, float]]:
    """Seconds of every layout in turn, after a first time that is not counted."""
    layouts = {
        name: row_layout(model.get_decoder(), RoleConfig(layout=name), attention)
        for name in LAYOUTS
    }
    for repeat in range(repeats + 1):
        for name, layout in layouts.items():
            start = time.perf_counter()
            forward_and_backward(model, experience, layout)
            if repeat:
                yield name, time.perf_counter() - start


def made_up(work: Work, vocab_size: int) -> Experience:
    """One micro-batch of random tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (work.groups, work.samples, work.prompt + work.answer)
    tokens = torch.randint(0, vocab_size, shape, generator=generator)
    tokens[:, :, : work.prompt] = tokens[:, :1, : work.prompt]
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, :, work.prompt :] = True
    numbers = torch.where(mask, torch.randn(shape, generator=generator), 0.0).flatten()
    num_samples = work.groups * work.samples
    return Experience(
        token_ids=tokens.flatten(),
        lengths=torch.full((num_samples,), shape[2]),
        loss_mask=mask.flatten(),
        advantages=numbers,
        old_logprobs=numbers,
        generator_logprobs=numbers,
        reference_logprobs=numbers,
        returns=numbers,
        values=numbers,
        micro_batches=(tuple(range(num_samples)),),
        num_loss_tokens=int(mask.sum()),
        num_sequences=num_samples,
        old_is_current=True,
    )


if __name__ == "__main__":
    main()
