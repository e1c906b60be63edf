"""Forward and backward of the same samples in padded rows and in packed ones that share prompts.

    python -m benchmarks.layouts MODEL REPEATS RESULT

Layouts and works take turns, because the speed of a shared machine drifts. What `auto` would take
is printed beside them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.raw_train import forward_and_backward
from benchmarks.work import arguments, work_config, write_result
from rlhf_ray.batching.row_layout import RowLayout, row_layout
from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_policy
from rlhf_ray.records import Experience

LAYOUTS = ("padded", "packed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Groups of samples with a common prompt; lengths in tokens."""

    groups: int
    samples: int
    prompt: int
    answer: int


# The first three predict the same number of tokens. The second and the third have the same number
# of tokens in rows of other lengths, and nothing to share: they tell what attention costs.
WORKS = {
    "group": Work(groups=1, samples=8, prompt=256, answer=64),
    "short": Work(groups=8, samples=1, prompt=256, answer=64),
    "long": Work(groups=1, samples=1, prompt=2041, answer=512),
    # A batch of recipe=demo.
    "demo": Work(groups=16, samples=8, prompt=14, answer=4),
}


def main() -> None:
    model_path, repeats, result = arguments()
    config = work_config(resolve_model_path(model_path, seed=0))
    torch.set_num_threads(config.training.cpu_threads)
    model = load_policy(config.model, dtype=config.training.dtype).eval()
    vocab_size = model.get_input_embeddings().weight.shape[0]
    works = {name: made_up(work, vocab_size) for name, work in WORKS.items()}
    if (limit := model.config.max_position_embeddings) < 2553:
        print(f"long: left out, the model has {limit} positions")
        del works["long"]
    layouts = {
        name: row_layout(model.get_decoder(), RoleConfig(layout=name), config.model.attention)
        for name in (*LAYOUTS, "auto")
    }
    measured: dict[str, list[float]] = {}
    # The first time is not counted; it makes what all later ones use again.
    forward_and_backward(model, works["group"], layouts["packed"])
    for _ in range(repeats):
        for (name, experience), layout in itertools.product(works.items(), LAYOUTS):
            start = time.perf_counter()
            forward_and_backward(model, experience, layouts[layout])
            seconds = time.perf_counter() - start
            print(f"{name}, {layout}: {seconds:.4f} s", flush=True)
            measured.setdefault(f"{name}_{layout}_s", []).append(seconds)
    for name, experience in works.items():
        for layout in LAYOUTS:
            median = statistics.median(measured[f"{name}_{layout}_s"])
            rows = rows_of(layouts[layout], experience)
            taken = "  (auto)" if rows == rows_of(layouts["auto"], experience) else ""
            print(f"{name:6} {layout:7} rows {rows[0]} x {rows[1]:<5} {median:8.4f} s{taken}")
    write_result(result, measured)


def rows_of(layout: RowLayout, experience: Experience) -> tuple[int, int, bool]:
    """Rows, their width, and whether there is a mask."""
    (rows,) = experience.micro_batches
    batch = layout.lay_out(
        experience.token_ids,
        experience.lengths,
        experience.loss_mask,
        experience.support_token_ids,
        rows,
    )
    return batch.input_ids.shape[0], batch.input_ids.shape[1], batch.packing is not None


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
        importance_weights=mask.flatten().float(),
        covariance_selected=torch.zeros_like(mask.flatten()),
        support_token_ids=None,
        reference_support_logprobs=None,
        micro_batches=(tuple(range(num_samples)),),
        num_loss_tokens=int(mask.sum()),
        num_sequences=num_samples,
        num_positive_tokens=int((numbers > 0).sum()),
        old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE,
    )


if __name__ == "__main__":
    main()
