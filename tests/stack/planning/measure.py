"""Memory of a rank that trains: the most of it in an update, after a first one.

    python -m tests.stack.planning.measure RANK WORLD_SIZE MASTER_PORT MODEL_FOLDER RESULT SETTINGS

SETTINGS is JSON: keys of `TrainingConfig`. Every micro-batch is full, and every token is predicted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.records.supervised import SupervisedSamples
from rlhf_ray.training.engine import process
from rlhf_ray.training.roles.sft_trainer import SftTrainer

SAMPLE_TOKENS = 256
_MICRO_BATCHES = 2


def main() -> None:
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    model, result, settings = Path(sys.argv[4]), Path(sys.argv[5]), json.loads(sys.argv[6])
    # What a process has freed would count as used.
    process.keep_freed_memory = lambda: None
    training = TrainingConfig(num_ranks=world_size, cpu_threads=1, layout="padded", **settings)
    trainer = SftTrainer(
        training=training,
        model=ModelConfig(
            path=str(model), tokenizer_path=str(model.parent / "tokenizer"), random_weights=True
        ),
        total_optimizer_steps=10,
        seed=0,
        timeout_s=240.0,
    )
    trainer.start(rank, world_size, "127.0.0.1", port)
    samples = _samples(training, world_size)
    trainer.update([samples])
    kept = _status("VmRSS")
    # The most since now.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    trainer.update([samples])
    trainer.update([samples])
    result.write_text(json.dumps({"kept": kept, "most": _status("VmHWM")}), encoding="utf-8")
    trainer.close()


def _samples(training: TrainingConfig, world_size: int) -> SupervisedSamples:
    in_batch = training.max_tokens_per_micro_batch // SAMPLE_TOKENS
    number = in_batch * _MICRO_BATCHES
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(number, SAMPLE_TOKENS, dtype=torch.bool)
    mask[:, 0] = False
    return SupervisedSamples(
        token_ids=torch.randint(0, 256, (number * SAMPLE_TOKENS,), generator=generator),
        lengths=torch.full((number,), SAMPLE_TOKENS),
        loss_mask=mask.flatten(),
        micro_batches=tuple(
            tuple(range(start, start + in_batch)) for start in range(0, number, in_batch)
        ),
        num_loss_tokens=int(mask.sum()) * world_size,
        num_sequences=number * world_size,
    )


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main()
