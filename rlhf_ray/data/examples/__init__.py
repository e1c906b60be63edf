"""Provisional: replaced by the part that reads examples."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from rlhf_ray.config.examples import ExamplesConfig
from rlhf_ray.supervised import LabelledTokens

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSet(Generic[T]):
    train: tuple[T, ...]
    held_out: tuple[T, ...]
    fingerprint: str

    def describe(self) -> str:
        return f"{len(self.train)} examples, {len(self.held_out)} held out"


def load_texts(
    examples: ExamplesConfig, tokenizer: Any, *, seed: int
) -> ExampleSet[LabelledTokens]:
    def labelled(row: dict[str, Any]) -> LabelledTokens:
        ids = torch.tensor(tokenizer(row["text"])["input_ids"][: examples.max_tokens])
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0] = False
        return LabelledTokens(token_ids=ids, loss_mask=mask)

    return _split(examples, [labelled(row) for row in _rows(examples.path)])


def load_demonstrations(
    examples: ExamplesConfig, tokenizer: Any, *, seed: int
) -> ExampleSet[LabelledTokens]:
    def labelled(row: dict[str, Any]) -> LabelledTokens:
        messages = row.get("messages") or [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        text = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer.encode(text, add_special_tokens=False)
        answer = tokenizer.encode(messages[-1]["content"], add_special_tokens=False)
        ids = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        mask = torch.arange(len(ids)) >= len(prompt)
        return LabelledTokens(token_ids=ids, loss_mask=mask)

    return _split(examples, [labelled(row) for row in _rows(examples.path)])


def _rows(path: str) -> Iterable[dict[str, Any]]:
    if Path(path).exists():
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    module, name = path.split(":")
    return list(getattr(importlib.import_module(module), name)())


def _split(examples: ExamplesConfig, rows: list[LabelledTokens]) -> ExampleSet[LabelledTokens]:
    every = round(1 / examples.eval_share) if examples.eval_share else len(rows) + 1
    held = tuple(row for index, row in enumerate(rows) if index % every == every - 1)
    train = tuple(row for index, row in enumerate(rows) if index % every != every - 1)
    digest = hashlib.sha256(repr([row.token_ids.tolist() for row in rows]).encode())
    return ExampleSet(train=train, held_out=held, fingerprint=digest.hexdigest()[:16])
