"""The formulas of the papers in plain Python: lists, loops and floats, slow on purpose.

Nothing here shares code or layout with the package. A sample is a list of tokens, a batch a
list of samples.
"""

from __future__ import annotations

import math


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def unbiased_variance(numbers: list[float]) -> float:
    centre = mean(numbers)
    return math.fsum((x - centre) ** 2 for x in numbers) / (len(numbers) - 1)


def group_advantages(
    groups: list[list[float]], *, normalize_by_std: bool, std_epsilon: float
) -> list[list[float]]:
    """GRPO, arXiv:2402.03300."""
    result = []
    for group in groups:
        if len(set(group)) <= 1:
            result.append([0.0] * len(group))
            continue
        scale = math.sqrt(unbiased_variance(group)) + std_epsilon if normalize_by_std else 1.0
        result.append([(reward - mean(group)) / scale for reward in group])
    return result


def gae_by_definition(
    rewards: list[float], values: list[float], gamma: float, gae_lambda: float
) -> list[float]:
    """Equation 16 of arXiv:1506.02438, summed forwards: sum over l of (gamma lambda)^l delta."""
    length = len(rewards)
    deltas = []
    for t in range(length):
        following = values[t + 1] if t + 1 < length else 0.0
        deltas.append(rewards[t] + gamma * following - values[t])
    return [
        math.fsum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, length))
        for t in range(length)
    ]


def gae_with_holes(
    rewards: list[float], values: list[float], mask: list[bool], gamma: float, gae_lambda: float
) -> tuple[list[float], list[float]]:
    """One sample, backwards over all its tokens; a masked token changes nothing that is carried."""
    advantages, returns = [0.0] * len(mask), [0.0] * len(mask)
    next_value, next_advantage = 0.0, 0.0
    for t in reversed(range(len(mask))):
        if not mask[t]:
            continue
        delta = rewards[t] + gamma * next_value - values[t]
        next_advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[t]
        advantages[t] = next_advantage
        returns[t] = next_advantage + values[t]
    return advantages, returns


def whiten(values: list[float], mask: list[bool]) -> list[float]:
    kept = [x for x, keep in zip(values, mask, strict=True) if keep]
    if not kept:
        return [0.0] * len(values)
    variance = unbiased_variance(kept) if len(kept) > 1 else 0.0
    scale = math.sqrt(variance + 1e-8)
    return [(x - mean(kept)) / scale if keep else 0.0 for x, keep in zip(values, mask, strict=True)]


def kl(logprob: float, reference_logprob: float, estimator: str) -> float:
    """http://joschu.net/blog/kl-approx.html, where r = reference / policy."""
    log_r = reference_logprob - logprob
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r**2 / 2
    assert estimator == "k3"
    return (math.exp(log_r) - 1) - log_r


def adaptive_kl(coefficient: float, observed: float, target: float, gain: float) -> float:
    """Section 2.2 of arXiv:1909.08593."""
    error = (observed - target) / target
    if error > 0.2:
        error = 0.2
    if error < -0.2:
        error = -0.2
    return coefficient * (1 + gain * error)


def token_rewards(
    outcome: float, kls: list[float], mask: list[bool], *, kl_coefficient: float, clip: float | None
) -> list[float]:
    """One sample; arXiv:2009.01325."""
    if clip is not None:
        outcome = max(-clip, min(clip, outcome))
    sampled = [t for t, keep in enumerate(mask) if keep]
    rewards = [0.0] * len(mask)
    for t in sampled:
        rewards[t] = -kl_coefficient * kls[t]
    if sampled:
        rewards[sampled[-1]] += outcome
    return rewards


def policy_loss(
    logprob: float,
    old_logprob: float,
    advantage: float,
    *,
    clip_low: float,
    clip_high: float,
    clamp: float,
) -> float:
    """One token; equation 7 of arXiv:1707.06347, by cases instead of min and clip."""
    log_ratio = logprob - old_logprob
    if log_ratio > clamp:
        log_ratio = clamp
    if log_ratio < -clamp:
        log_ratio = -clamp
    ratio = math.exp(log_ratio)
    if advantage > 0 and ratio > 1 + clip_high:
        return -(1 + clip_high) * advantage
    if advantage < 0 and ratio < 1 - clip_low:
        return -(1 - clip_low) * advantage
    return -ratio * advantage


def value_loss(value: float, old_value: float, target: float, *, clip: float | None) -> float:
    """One token; arXiv:2005.12729, section 3."""
    loss = (value - target) ** 2 / 2
    if clip is None:
        return loss
    near = value
    if value > old_value + clip:
        near = old_value + clip
    if value < old_value - clip:
        near = old_value - clip
    return max(loss, (near - target) ** 2 / 2)


def masked_mean(values: list[float], mask: list[bool], global_count: int) -> float:
    total = math.fsum(x for x, keep in zip(values, mask, strict=True) if keep)
    return total / global_count if global_count else 0.0
