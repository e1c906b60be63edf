"""Measures of the answers of one step: what a report draws over time, and what alarms look at."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.report.forgiving_reads import is_number

NGRAM = 8
_REPEATED_NGRAM = 4
# More of an answer is not looked at: an answer of a million characters would cost seconds.
_MAX_CHARACTERS = 4000
# Marks by which the chat templates of common models begin a call of a tool.
_TOOL_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=")


@dataclass(kw_only=True, slots=True)
class StepMeasures:
    """Measures of the answers of a step that were read.

    Attributes:
        rewards: of every answer.
        num_groups, num_flat_groups: groups with a comparison, and those whose rewards are equal.
        answers: how many prompts have an answer, by its text; short texts only.
        ngrams: how many answers hold a run of `NGRAM` words, by the run.
        num_repetitive: answers of which more than half repeats itself.
        num_tool_calls, num_cut: answers with a call of a tool, and answers cut at the limit.
    """

    step: int
    rewards: list[float] = field(default_factory=list)
    num_answers: int = 0
    num_prompts: int = 0
    num_groups: int = 0
    num_flat_groups: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    ngrams: Counter[str] = field(default_factory=Counter)
    num_repetitive: int = 0
    num_tool_calls: int = 0
    num_cut: int = 0

    def add_group(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count the answers to one prompt."""
        rewards = [float(row["reward"]) for row in rows if is_number(row.get("reward"))]
        self.rewards += rewards
        self.num_prompts += 1
        if len(rewards) > 1:
            self.num_groups += 1
            self.num_flat_groups += max(rewards) - min(rewards) <= 1e-9
        texts = [str(row.get("response", ""))[:_MAX_CHARACTERS] for row in rows]
        self.answers.update({text.strip() for text in texts})
        for row, text in zip(rows, texts, strict=True):
            self.num_answers += 1
            self.num_cut += row.get("finish_reason") == "length"
            self.num_tool_calls += any(mark in text for mark in _TOOL_MARKS)
            words = text.split()
            self.num_repetitive += repeated_share(words) > 0.5
            self.ngrams.update(set(_ngrams(words, NGRAM)))

    def most_common_answer(self) -> tuple[str, float]:
        """The text that answers most prompts, and the share of the prompts it answers."""
        return _top(self.answers, self.num_prompts)

    def most_common_ngram(self) -> tuple[str, float]:
        """The run of words in most answers, and the share of the answers that hold it."""
        return _top(self.ngrams, self.num_answers)

    def shares(self) -> dict[str, float]:
        """The measures as shares between 0 and 1; without those that nothing is known about."""
        found: dict[str, float] = {}
        if self.num_groups:
            found["groups of equal rewards"] = self.num_flat_groups / self.num_groups
        if self.num_answers:
            found["cut at the limit"] = self.num_cut / self.num_answers
            found["repetitive answers"] = self.num_repetitive / self.num_answers
            found["most common answer"] = self.most_common_answer()[1]
            found["answers with a tool call"] = self.num_tool_calls / self.num_answers
        return found

    def forget_texts(self) -> None:
        """Keep only the largest count of a text: all of a long run would be gigabytes."""
        self.answers = Counter(dict(self.answers.most_common(1)))
        self.ngrams = Counter(dict(self.ngrams.most_common(1)))


def repeated_share(words: Sequence[str]) -> float:
    """Share of the runs of four words that have occurred before in the same answer."""
    runs = _ngrams(words, _REPEATED_NGRAM)
    return 1 - len(set(runs)) / len(runs) if len(runs) >= _REPEATED_NGRAM else 0.0


def reward_bands(steps: Sequence[StepMeasures], num_bands: int = 24) -> dict[str, Any]:
    """Histogram of the rewards of every step, over the range of all steps together.

    The range leaves out the farthest 0.5 percent on each side, which count in the outer bands.

    Returns:
        `low` and `high` of the range, and `counts`: a list of bands for every step.
    """
    every = sorted(reward for step in steps for reward in step.rewards)
    if not every:
        return {}
    cut = len(every) // 200
    low, high = every[cut], every[len(every) - 1 - cut]
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / num_bands
    counts = []
    for step in steps:
        bands = [0] * num_bands
        for reward in step.rewards:
            bands[min(max(int((reward - low) / width), 0), num_bands - 1)] += 1
        counts.append(bands)
    middle = [statistics.median(step.rewards) if step.rewards else None for step in steps]
    return {"low": low, "high": high, "counts": counts, "median": middle}


def _ngrams(words: Sequence[str], size: int) -> list[str]:
    return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def _top(counts: Counter[str], total: int) -> tuple[str, float]:
    if not counts or not total:
        return "", 0.0
    text, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]))
    return text, count / total
