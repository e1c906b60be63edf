"""TRL's trainers on the rows of the comparison: the loss of every optimiser step.

    python -m benchmarks.agreement_trl STAGE MODEL RESULT

Each keeps its own way from a row to tokens, its own padding and its own sums. What it is told is
what its defaults do otherwise than the command.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.agreement_work import (
    ADAM_BETA2,
    BETA,
    CENTRING,
    GRADIENT_CLIP_NORM,
    LEARNING_RATE,
    NUM_STEPS,
    SAMPLES_PER_STEP,
    TRL_BATCH,
    WEIGHT_DECAY,
    in_order,
    neutral_rows,
    trl_row,
)

# Trainer, its configuration, and what that takes beyond what all three have.
_TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, {}),
    "reward_model": (RewardTrainer, RewardConfig, {"center_rewards_coefficient": CENTRING}),
    "preference": (DPOTrainer, DPOConfig, {"beta": BETA}),
}


def losses(stage: str, model: str) -> list[float]:
    """Of the optimiser steps, in order."""
    trainer_class, config_class, of_stage = _TRAINERS[stage]
    rows = [trl_row(stage, row) for row in in_order(neutral_rows())]
    with tempfile.TemporaryDirectory() as folder:
        settings = config_class(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=TRL_BATCH,
            gradient_accumulation_steps=SAMPLES_PER_STEP // TRL_BATCH,
            max_steps=NUM_STEPS,
            # The rows are in the command's order already.
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            # Its default falls to 0, and its warm-up begins there; see docs/training_stages.md.
            lr_scheduler_type="constant",
            adam_beta2=ADAM_BETA2,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=GRADIENT_CLIP_NORM,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **of_stage,
        )
        trainer = trainer_class(
            model=model,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[1] not in _TRAINERS:
        raise SystemExit(f"usage: python -m {__package__}.agreement_trl STAGE MODEL RESULT")
    torch.set_num_threads(2)
    Path(sys.argv[3]).write_text(json.dumps(losses(sys.argv[1], sys.argv[2])) + "\n")


if __name__ == "__main__":
    main()
