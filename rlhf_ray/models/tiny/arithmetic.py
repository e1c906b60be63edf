"""The built-in model `arithmetic`, which knows the sums of two digits but often answers otherwise.

Warmed up on "What is a+b?" until greedy decoding is nearly always right, and sampling is right in
about 40 % of the cases: enough for a reward to reinforce, and enough left to learn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlhf_ray.data.builtin import arithmetic
from rlhf_ray.models.folder import Report
from rlhf_ray.models.tiny.llama import TinySizes, new_tiny_llama, save_folder
from rlhf_ray.models.tiny.tokenizer import train_tokenizer
from rlhf_ray.models.tiny.warmup import Phase, WarmupRow, WarmupSettings, warm_up

_SETTINGS = WarmupSettings(batch_size=128, num_threads=2)
_FIRST_STEPS, _FIRST_WARMUP, _FIRST_FLAT, _FIRST_RATE = 280, 20, 168, 3e-3
_SECOND_STEPS, _SECOND_RATE = 120, 4.5e-4
_FLOOR = 0.05


def make(folder: Path, seed: int, report: Report) -> None:
    """Train the model and write it to `folder`."""
    mostly_right, often_wrong = rows(share_right=0.8), rows(share_right=0.4)
    # Every text once: the tokenizer needs the words, not their frequencies.
    tokenizer = train_tokenizer(text for row in often_wrong for text in (row.question, row.answer))
    model = new_tiny_llama(tokenizer, seed=seed, sizes=TinySizes())
    phases = (
        Phase(
            rows=mostly_right,
            num_steps=_FIRST_STEPS,
            learning_rate=_rise_hold_fall(_FIRST_RATE, _FIRST_WARMUP, _FIRST_FLAT, _FIRST_STEPS),
        ),
        Phase(
            rows=often_wrong,
            num_steps=_SECOND_STEPS,
            learning_rate=_rise_hold_fall(_SECOND_RATE, 0, 0, _SECOND_STEPS),
        ),
    )
    warm_up(model, tokenizer, phases, _SETTINGS, seed=seed, report=report)
    save_folder(folder, model, tokenizer)


def rows(*, share_right: float) -> tuple[WarmupRow, ...]:
    """Answers to all sums, every sum with the same total weight.

    Of the wrong answers, 45 % name the nearest ten, 45 % say "I do not know." and 10 % are one
    off.
    """
    result = []
    for fact in arithmetic():
        right = int(fact["answer"])
        others = 1 - share_right
        result += [
            WarmupRow(question=fact["prompt"], answer=answer, weight=weight)
            for answer, weight in (
                (str(right), share_right),
                (f"About {(right + 5) // 10 * 10}.", 0.45 * others),
                ("I do not know.", 0.45 * others),
                (str(right + 1), 0.05 * others),
                (str(max(right - 1, 0)), 0.05 * others),
            )
        ]
    return tuple(result)


def _rise_hold_fall(
    peak: float, warmup: int, flat_until: int, num_steps: int
) -> Callable[[int], float]:
    """Rate that rises linearly for `warmup` steps, stays to `flat_until`, and falls to 5 %."""

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if step < flat_until:
            return peak
        done = (step - flat_until) / max(num_steps - flat_until, 1)
        return peak * (1 - (1 - _FLOOR) * done)

    return rate
