"""The inputs of a run, read and checked before any worker starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.driver.updates.texts import TextSource
from rlhf_ray.records import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """What was read and checked before any worker started.

    Attributes:
        vocabulary: number of token ids.
        texts: what the policy learns beside its samples.
        identity: settings without which a resumed run is not the same run.
        resume_from: checkpoint folder, or None.
        held_out: prompts that are answered while the policy is trained; may be empty.
    """

    prompts: PromptSet
    vocabulary: int
    texts: TextSource
    identity: dict[str, Any]
    resume_from: Path | None
    held_out: tuple[Prompt, ...]
