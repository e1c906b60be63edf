"""Files of an evaluation in its output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.evaluation.answers import Answer
from rlhf_ray.evaluation.evaluation_report import ModelAnswers


def write_report(output: Path, report: Mapping[str, Any], table: str) -> None:
    """Write evaluation.json and table.md, each atomically."""
    write_atomically(
        output / "evaluation.json", json.dumps(report, indent=2, allow_nan=False) + "\n"
    )
    write_atomically(output / "table.md", table + "\n")


def write_samples(output: Path, models: Sequence[ModelAnswers]) -> None:
    """Write samples.jsonl: one object for each prompt, with the answers of all models."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in sample_rows(models))
    write_atomically(output / "samples.jsonl", "".join(f"{line}\n" for line in lines))


def sample_rows(models: Sequence[ModelAnswers]) -> Iterator[dict[str, Any]]:
    """Rows in the order of the prompts; null for a model without a result for the prompt."""
    answered = [{prompt.prompt_id: prompt for prompt in model.prompts} for model in models]
    for prompt_id in dict.fromkeys(prompt_id for prompts in answered for prompt_id in prompts):
        of_models = [prompts.get(prompt_id) for prompts in answered]
        first = next(prompt for prompt in of_models if prompt is not None)
        yield {
            "prompt_id": prompt_id,
            "task": first.source,
            "prompt": first.prompt,
            "reference_answer": first.reference_answer,
            "answers": {
                model.name: None
                if prompt is None
                else {mode: [_plain(a) for a in found] for mode, found in prompt.answers.items()}
                for model, prompt in zip(models, of_models, strict=True)
            },
        }


def _plain(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "reward": answer.reward,
        "reward_parts": answer.parts,
        "tokens": answer.num_tokens,
        "is_cut": answer.is_cut,
        "repeated_share": answer.repeated,
        "kl": answer.kl,
    }
