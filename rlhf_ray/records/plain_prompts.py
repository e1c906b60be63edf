"""Prompts as plain values, for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhf_ray.records.rollouts import Prompt


def plain_prompts(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Convert prompts to plain values for JSON."""
    return [asdict(prompt) for prompt in prompts]


def prompts_from_plain(plain: Sequence[dict[str, Any]]) -> list[Prompt]:
    """Restore prompts from `plain_prompts`."""
    return [
        Prompt(
            **{
                **prompt,
                "token_ids": tuple(prompt["token_ids"]),
                # Checkpoints of earlier releases lack these keys.
                "messages": tuple(prompt.get("messages", ())),
                "tools": tuple(prompt.get("tools", ())),
            }
        )
        for prompt in plain
    ]
