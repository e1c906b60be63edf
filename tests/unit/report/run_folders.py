"""Output folders as runs leave them, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_metrics(folder: Path, num_steps: int, values: Callable[[int], Mapping[str, Any]]) -> None:
    """Write metrics.jsonl with the values of every step, counted from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"step": step, **values(step)} for step in range(1, num_steps + 1))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


def write_step(folder: Path, step: int, groups: Sequence[Sequence[Mapping[str, Any]]]) -> Path:
    """Write a rollout file."""
    path = folder / "rollouts" / f"step_{step:06}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample) + "\n" for group in groups for sample in group]
    path.write_text("".join(lines))
    return path


def group(
    prompt: str, responses: Sequence[str], rewards: Sequence[float], **more: Any
) -> list[dict[str, Any]]:
    """Rows of one prompt, as `observe.rollout_log` writes them."""
    return [
        {
            "prompt_id": f"e0-{prompt}",
            "prompt": prompt,
            "sample_index": index,
            "response": response,
            "reward": reward,
            "reward_parts": {"exact": reward},
            "weight_versions": [[3, len(response.split())]],
            "finish_reason": "stop",
            "response_tokens": len(response.split()),
            **more,
        }
        for index, (response, reward) in enumerate(zip(responses, rewards, strict=True))
    ]


def write_spans(folder: Path, num_steps: int, *, num_engines: int = 2) -> None:
    """Write spans.jsonl: steps of two seconds; the last engine begins before its step."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, num_steps + 1):
        engines = {
            f"generator_{i}": {"generate": [[-100 * i, 800 + 100 * i, 4]]}
            for i in range(num_engines)
        }
        row = {
            "step": step,
            "began_at": 1_700_000_000.0 + 2 * step,
            "ms": 2000,
            "phases": [["generate", 0, 1000], ["update", 1000, 1950]],
            "workers": {**engines, "learner_0": {"update": [[1000, 1900, 1]]}},
        }
        lines.append(json.dumps(row) + "\n")
    (folder / "spans.jsonl").write_text("".join(lines))
