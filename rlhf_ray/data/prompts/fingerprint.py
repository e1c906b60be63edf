"""Fingerprints of prompts: whether a resumed run has the rows of its checkpoint."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from rlhf_ray.records import Prompt


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hash of ids, tokens, answers and tasks, in order."""
    return _hash([p.prompt_id, p.token_ids, p.answer, p.source] for p in prompts)


def rows_fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hash of the other fields, which rewards and other models' templates see, in order."""
    return _hash([p.text, p.messages, p.tools, p.columns] for p in prompts)


def _hash(contents: Iterable[Sequence[Any]]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        # The order of columns and fields means nothing, and a reader may give another one.
        digest.update(json.dumps(content, sort_keys=True, default=_as_text).encode())
    return digest.hexdigest()[:16]


def _as_text(value: Any) -> str:
    """A value of a message that JSON has no form for; text of an object may hold its address."""
    return str(value) if isinstance(value, datetime.date | Decimal) else type(value).__name__
