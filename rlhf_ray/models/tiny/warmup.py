"""Supervised warm-up of a tiny model: the answers of generated rows, on the CPU."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_ray.models.folder import Report
from rlhf_ray.models.tiny.tokenizer import EOS, PAD, token_id

IGNORED = -100
_REPORT_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupRow:
    """A question, one possible answer, and the weight of the answer (not normalised)."""

    question: str
    answer: str
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Optimiser steps on one mixture of rows.

    `learning_rate` gives the rate of step 0, 1, ... `num_steps` - 1 of this phase.
    """

    rows: tuple[WarmupRow, ...]
    num_steps: int
    learning_rate: Callable[[int], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupSettings:
    """Settings of all phases."""

    batch_size: int
    num_threads: int
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0


def warm_up(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    phases: Sequence[Phase],
    settings: WarmupSettings,
    *,
    seed: int,
    report: Report,
) -> None:
    """Train `model` in place, on rows drawn by weight; the loss counts answer tokens only."""
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    total = sum(phase.num_steps for phase in phases)
    progress = _Progress(total, report)
    model.train()
    with _threads(settings.num_threads):
        for phase in phases:
            rows = EncodedRows(phase.rows, tokenizer)
            for step in range(phase.num_steps):
                for group in optimizer.param_groups:
                    group["lr"] = phase.learning_rate(step)
                tokens, labels = rows.draw(settings.batch_size, generator)
                loss = batch_loss(model, rows.prefix, tokens, labels)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                progress.step(loss)
    model.eval()


def batch_loss(model: LlamaForCausalLM, prefix: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled positions.

    The prefix runs once for the whole batch instead of once for each row, a quarter of the work
    saved; gradients flow through its keys and values. Rows are padded on the right and attention
    is causal, so that no mask is needed. The head runs only on the labelled positions.

    Args:
        prefix [P]: the tokens that all rows begin with, which are not in `tokens`.
        tokens, labels [B, T]: labels are `IGNORED` at positions without a loss.
    """
    cache = model.model(input_ids=prefix[None], use_cache=True).past_key_values
    cache.batch_repeat_interleave(tokens.shape[0])
    output = model.model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True)
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    return F.cross_entropy(model.lm_head(output.last_hidden_state[labelled]), targets[labelled])


class EncodedRows:
    """Rows as padded tensors, drawn with replacement by their weights."""

    def __init__(self, rows: Sequence[WarmupRow], tokenizer: PreTrainedTokenizerFast) -> None:
        encoded = [encode_row(row.question, row.answer, tokenizer) for row in rows]
        # One prompt token stays in every row: it predicts the first token of the answer.
        shared = min(
            _num_shared([tokens for tokens, _ in encoded]),
            min(num_prompt for _, num_prompt in encoded) - 1,
        )
        assert shared > 0, "the chat template begins every row with the same token"
        self.prefix = torch.tensor(encoded[0][0][:shared])
        longest = max(len(tokens) for tokens, _ in encoded) - shared
        self._tokens = torch.full((len(rows), longest), token_id(tokenizer, PAD))
        self._labels = torch.full((len(rows), longest), IGNORED)
        for index, (tokens, num_prompt) in enumerate(encoded):
            length, answer = len(tokens) - shared, num_prompt - shared
            self._tokens[index, :length] = torch.tensor(tokens[shared:])
            self._labels[index, answer:length] = torch.tensor(tokens[num_prompt:])
        self._weights = torch.tensor([row.weight for row in rows], dtype=torch.float64)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels [count, T]."""
        index = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        return self._tokens[index], self._labels[index]


def _num_shared(sequences: Sequence[list[int]]) -> int:
    """Length of the common prefix of all sequences, equal to that of the least and the greatest."""
    pairs = zip(min(sequences), max(sequences), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def encode_row(
    question: str, answer: str, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], int]:
    """Token ids of a chat with one question and its answer, and the number of prompt tokens."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    answer_ids = tokenizer.encode(answer, add_special_tokens=False)
    return [*prompt, *answer_ids, token_id(tokenizer, EOS)], len(prompt)


class _Progress:
    """Reports the loss every few seconds."""

    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self._next = time.monotonic() + _REPORT_EVERY_S

    def step(self, loss: Tensor) -> None:
        self._done += 1
        if time.monotonic() < self._next and self._done < self._total:
            return
        self._next = time.monotonic() + _REPORT_EVERY_S
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"the warm-up diverged: loss {value} at step {self._done}")
        self._report(f"warm-up step {self._done} of {self._total}, loss {value:.3f}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of torch threads: another number would sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
