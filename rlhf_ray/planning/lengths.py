"""Lengths of responses, from their mean and their limit: exponential, cut off at the limit.

The longest of a batch decides how long an engine is busy, and the mean square how much attention
costs; a mean alone says neither. An exponential that is cut off has one parameter, which the mean
determines: a mean near the limit makes most responses reach it, as in runs whose answers are cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_HALVINGS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Tokens of prompts and responses.

    Attributes:
        prompt: mean.
        mean, longest: of responses.
    """

    prompt: float
    mean: float
    longest: float

    @property
    def rate(self) -> float:
        """Share of responses that end with a token, of those that run; 0 if all are the longest.

        Solves mean = (1 - exp(-rate * longest)) / rate by bisection.
        """
        low, high = 0.0, 1.0
        if self.mean >= self.longest:
            return 0.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            expected = (1 - math.exp(-middle * self.longest)) / middle
            low, high = (middle, high) if expected > self.mean else (low, middle)
        return (low + high) / 2

    def running(self, token: float) -> float:
        """Share of responses that are longer than so many tokens."""
        return math.exp(-self.rate * token)

    def last(self, number: float) -> float:
        """Tokens of the longest response of so many, at most the limit."""
        rate = self.rate
        if rate * self.longest <= math.log(max(number, 1.0)) or not rate:
            return self.longest
        return max(self.mean, math.log(number) / rate)

    @property
    def sample(self) -> float:
        """Mean tokens of prompt and response."""
        return self.prompt + self.mean

    @property
    def context(self) -> float:
        """Length of a sample that a token is in, on average over tokens: E[s * s] / E[s]."""
        rate, longest = self.rate, self.longest
        if not rate:
            return self.prompt + longest
        # E[x * x] of an exponential that is cut off.
        left = rate * longest
        square = 2 / rate**2 * (1 - math.exp(-left) * (1 + left))
        return (self.prompt**2 + 2 * self.prompt * self.mean + square) / self.sample

    @property
    def mean_context(self) -> float:
        """Tokens in the cache of a running response, on average over its tokens."""
        return self.prompt + (self.context - self.prompt) / 2
