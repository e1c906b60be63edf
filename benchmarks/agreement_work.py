"""What both sides of the comparison with TRL learn from: rows, their order, a model, settings.

160 samples in 20 optimiser steps, in float32. Every number that both sides take stands here once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.models.quiet import without_progress_bars
from rlhf_ray.testing.tiny import tiny_random

STAGES = ("sft", "reward_model", "preference")
NUM_STEPS = 20
SAMPLES_PER_STEP = 8
# Of a forward pass: a step has several, which must not matter. TRL counts samples, the command
# counts tokens; none of the samples is longer than their limit.
TRL_BATCH, MAX_TOKENS, MAX_SAMPLE_TOKENS = 4, 512, 160
# Far from what either side takes by default, so that a setting that does not arrive moves a loss by
# more than the tolerance.
LEARNING_RATE, ADAM_BETA2, WEIGHT_DECAY = 1e-3, 0.95, 1.0
# Below the norms of these gradients, so that clipping is compared too.
GRADIENT_CLIP_NORM = 0.5
BETA = 0.1
CENTRING = 0.01
SEED = 3
# Neither a divisor nor a multiple of the samples: an epoch ends within a step, and the second one
# has an order of its own.
_NUM_ROWS = 100


def neutral_rows() -> list[dict[str, Any]]:
    """Prompts of one or three messages with two answers each, of very different lengths.

    Returns:
        rows of `prompt` (messages), `better`, `worse` (texts) and `margin` (at least 0).
    """
    rows = []
    for number in range(_NUM_ROWS):
        a, b = divmod(7 * number + 3, 10)
        prompt = [{"role": "user", "content": f"What is {a} + {b}?"}]
        if number % 3 == 0:
            earlier = [
                {"role": "user", "content": "Can you add numbers?"},
                {"role": "assistant", "content": "Yes, and gladly."},
            ]
            prompt = earlier + prompt
        better = str(a + b) if number % 2 else f"The sum of {a} and {b} is {a + b}"
        worse = f"Maybe {a + b + 1}, who knows" + ", or not" * (number % 4)
        rows.append(
            {"prompt": prompt, "better": better, "worse": worse, "margin": 0.25 * (number % 3)}
        )
    return rows


def own_row(stage: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row in the columns that the command reads."""
    if stage == "sft":
        return {"prompt": row["prompt"], "answer": row["better"]}
    kept = {"prompt": row["prompt"], "chosen": row["better"], "rejected": row["worse"]}
    return kept | {"margin": row["margin"]} if stage == "reward_model" else kept


def trl_row(stage: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row in the columns that TRL reads: it renders and tokenises by itself."""
    better, worse = (
        [{"role": "assistant", "content": row[column]}] for column in ("better", "worse")
    )
    if stage == "sft":
        return {"prompt": row["prompt"], "completion": better}
    kept = {"prompt": row["prompt"], "chosen": better, "rejected": worse}
    return kept | {"margin": row["margin"]} if stage == "reward_model" else kept


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the command goes through them, epoch after epoch, for all steps."""
    order = RowOrder("samples", num_rows=len(rows), fingerprint="", seed=SEED, shuffle=True)
    return [rows[order.next().row] for _ in range(NUM_STEPS * SAMPLES_PER_STEP)]


def make_model(stage: str, folder: Path) -> Path:
    """A model without dropout; for a reward model a classifier, so that both have one head."""
    tiny_random(folder)
    if stage == "reward_model":
        with torch.random.fork_rng(devices=()), without_progress_bars():
            torch.manual_seed(SEED)
            # From the configuration: the backbone of `tiny_random` is no better than any other.
            config = AutoConfig.from_pretrained(folder, num_labels=1)
            classifier = AutoModelForSequenceClassification.from_config(config)
            classifier.float().save_pretrained(folder)
    return folder


def write_rows(stage: str, path: Path) -> Path:
    """The rows for the command, one JSON object a line."""
    path.write_text("".join(json.dumps(own_row(stage, row)) + "\n" for row in neutral_rows()))
    return path


def overrides(stage: str, model: Path, rows: Path) -> list[str]:
    """What the command is told."""
    return [
        f"stage={stage}",
        f"seed={SEED}",
        f"model.path={model}",
        f"examples.path={rows}",
        "examples.eval_share=0",
        f"examples.max_tokens={MAX_SAMPLE_TOKENS}",
        "examples.on_long=error",
        f"fit.batch_size={SAMPLES_PER_STEP}",
        f"fit.max_steps={NUM_STEPS}",
        "fit.num_epochs=2",
        "training=cpu",
        f"training.max_tokens_per_micro_batch={MAX_TOKENS}",
        f"training.learning_rate={LEARNING_RATE}",
        "training.schedule=constant",
        f"training.adam_beta2={ADAM_BETA2}",
        f"training.weight_decay={WEIGHT_DECAY}",
        f"training.gradient_clip_norm={GRADIENT_CLIP_NORM}",
        *([f"preference.beta={BETA}"] if stage == "preference" else []),
        *([f"reward_model.centring_coefficient={CENTRING}"] if stage == "reward_model" else []),
        "checkpoint.every_steps=0",
    ]
