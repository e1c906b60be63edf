"""The formulas of the papers in plain Python: lists, loops and floats, slow on purpose.

Nothing here shares code or layout with the package. A sample is a list of tokens, a batch a
list of samples.
"""

from __future__ import annotations

import math

TOLERANCE = 2.0**-7  # one step of bfloat16


def equal(numbers: list[float], tolerance: float = TOLERANCE) -> bool:
    """No two numbers are further apart than a share of the largest."""
    return all(
        abs(a - b) <= max(tolerance, 1e-9) * max(map(abs, numbers))
        for a in numbers
        for b in numbers
    )


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
        if equal(group, TOLERANCE if normalize_by_std else 0.0):
            result.append([0.0] * len(group))
            continue
        scale = math.sqrt(unbiased_variance(group)) + std_epsilon if normalize_by_std else 1.0
        result.append([(reward - mean(group)) / scale for reward in group])
    return result


def normalized_rewards(
    batches: list[list[tuple[str, float]]], *, running: bool
) -> list[list[float]]:
    """Every (task, reward) of every batch by its own task's rewards: of the batch, or so far."""
    result = []
    for number, batch in enumerate(batches):
        known = batches[: number + 1] if running else [batch]
        normalized = []
        for task, reward in batch:
            same = [r for one in known for other, r in one if other == task]
            scale = math.sqrt(unbiased_variance(same)) if not equal(same) else 1.0
            normalized.append((reward - mean(same)) / scale)
        result.append(normalized)
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
    scale = 1.0 if equal(kept) else math.sqrt(unbiased_variance(kept) + 1e-8)
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


def mean_share(values: list[float], mask: list[bool], global_count: int) -> float:
    total = math.fsum(x for x, keep in zip(values, mask, strict=True) if keep)
    return total / global_count if global_count else 0.0


def leave_one_out_std_advantages(group: list[float], epsilon: float) -> list[float]:
    """GRPO divided by the deviation of the others; by 1 where they are equal."""
    if equal(group):
        return [0.0] * len(group)
    result = []
    for i, reward in enumerate(group):
        others = group[:i] + group[i + 1 :]
        spread = 0.0 if equal(others) else math.sqrt(unbiased_variance(others))
        result.append((reward - mean(group)) / (spread + epsilon if spread > 0 else 1.0))
    return result


def rloo(group: list[float]) -> list[float]:
    """Equation 8 of arXiv:2402.14740."""
    return [
        reward - mean([other for j, other in enumerate(group) if j != i])
        for i, reward in enumerate(group)
    ]


def opo(group: list[float], lengths: list[int]) -> list[float]:
    """arXiv:2505.23585: the baseline weighs every reward by its length."""
    weighted = math.fsum(n * r for n, r in zip(lengths, group, strict=True))
    baseline = weighted / sum(lengths) if sum(lengths) else mean(group)
    return [reward - baseline for reward in group]


def maxrl(group: list[float]) -> list[float]:
    """arXiv:2602.02710: as the average of the scores of the successes, less that of all samples.

    For rewards of 0 and 1 with K successes of N the estimator is (1 / K) sum over successes of
    the score, less (1 / N) sum over all of it: per sample N times its coefficient.
    """
    successes = math.fsum(group)
    if successes == 0:
        return [0.0] * len(group)
    return [len(group) * (reward / successes - 1 / len(group)) for reward in group]


def returns_to_go(rewards: list[float], mask: list[bool], gamma: float) -> list[float]:
    """One sample: the discounted sum over the sampled tokens from each one on."""
    result = [0.0] * len(mask)
    sampled = [t for t, keep in enumerate(mask) if keep]
    for place, t in enumerate(sampled):
        result[t] = math.fsum(
            gamma**distance * rewards[later] for distance, later in enumerate(sampled[place:])
        )
    return result


def process_advantages(
    step_rewards: list[list[float]],
    step_ends: list[list[bool]],
    masks: list[list[bool]],
    std_epsilon: float,
) -> list[list[float]]:
    """One group; section 4.1.3 of arXiv:2402.03300."""
    steps = [
        (sample, t, step_rewards[sample][t])
        for sample, mask in enumerate(masks)
        for t, keep in enumerate(mask)
        if keep and step_ends[sample][t]
    ]
    rewards = [reward for _, _, reward in steps]
    result = [[0.0] * len(mask) for mask in masks]
    if equal(rewards):
        return result
    scale = math.sqrt(unbiased_variance(rewards)) + std_epsilon
    for sample, mask in enumerate(masks):
        for t, keep in enumerate(mask):
            if keep:
                result[sample][t] = math.fsum(
                    (reward - mean(rewards)) / scale
                    for owner, end, reward in steps
                    if owner == sample and end >= t
                )
    return result


def sequence_ratio(gaps: list[float], mask: list[bool], clamp: float) -> float:
    """Equation 7 of arXiv:2507.18071 for one sequence, from log-probability gaps."""
    kept = [gap for gap, keep in zip(gaps, mask, strict=True) if keep]
    if not kept:
        return 1.0
    return math.exp(max(-clamp, min(clamp, mean(kept))))


def dual_clip_loss(loss: float, advantage: float, bound: float) -> float:
    """Equation 5 of arXiv:1912.09729."""
    return min(loss, -bound * advantage) if advantage < 0 else loss


def cispo(logprob: float, ratio: float, advantage: float, low: float, high: float) -> float:
    """Equation 4 of arXiv:2506.13585, one token."""
    weight = ratio
    if weight > 1 + high:
        weight = 1 + high
    if weight < 1 - low:
        weight = 1 - low
    return -weight * advantage * logprob


def sapo(ratio: float, advantage: float, positive: float, negative: float) -> float:
    """Equations 5 and 6 of arXiv:2511.20347, one token."""
    tau = positive if advantage > 0 else negative
    return -(4 / tau) / (1 + math.exp(-tau * (ratio - 1))) * advantage


def gmpo(gaps: list[float], advantages: list[float], low: float, high: float) -> float:
    """Equation 4 of arXiv:2507.20673, one sequence of sampled tokens: products and roots."""
    advantage = mean(advantages)
    product = 1.0
    for gap in gaps:
        ratio = math.exp(gap)
        if advantage > 0:
            ratio = min(ratio, math.exp(high))
        elif advantage < 0:
            ratio = max(ratio, math.exp(-low))
        product *= ratio
    return -(product ** (1 / len(gaps))) * advantage


def covariances(logprobs: list[float], advantages: list[float]) -> list[float]:
    """Equation 10 of arXiv:2505.22617."""
    return [
        (logprob - mean(logprobs)) * (advantage - mean(advantages))
        for logprob, advantage in zip(logprobs, advantages, strict=True)
    ]


def correction(
    gaps: list[float], *, weight: str, cap: float, keep: str, low: float, high: float
) -> list[float]:
    """Weights of the sampled tokens of one sequence, from log learner - log engine."""
    product = math.exp(math.fsum(gaps))
    result = []
    for gap in gaps:
        ratio = {"none": 1.0, "token": math.exp(gap), "sequence": product}[weight]
        bounded = {
            "none": None,
            "token": math.exp(gap),
            "sequence": product,
            "geometric": product ** (1 / len(gaps)),
        }[keep]
        inside = bounded is None or low <= bounded <= high
        result.append(min(ratio, cap) if inside else 0.0)
    return result


def reduce_tokens(
    values: list[list[float]], masks: list[list[bool]], *, reduction: str, constant_length: int
) -> float:
    """Every sequence at once; those without a sampled token are no sequences."""
    kept = [
        [x for x, keep in zip(row, mask, strict=True) if keep]
        for row, mask in zip(values, masks, strict=True)
    ]
    kept = [row for row in kept if row]
    if not kept:
        return 0.0
    total = math.fsum(x for row in kept for x in row)
    return {
        "token_mean": total / sum(len(row) for row in kept),
        "sequence_mean": mean([mean(row) for row in kept]),
        "sequence_sum": mean([math.fsum(row) for row in kept]),
        "constant_length": total / len(kept) / constant_length,
    }[reduction]


def huber(error: float, delta: float) -> float:
    """Huber 1964."""
    return error**2 / 2 if abs(error) <= delta else delta * (abs(error) - delta / 2)


def full_kl(logits: list[float], reference_logits: list[float]) -> float:
    def softmax(numbers: list[float]) -> list[float]:
        exponentials = [math.exp(x - max(numbers)) for x in numbers]
        return [x / math.fsum(exponentials) for x in exponentials]

    p, q = softmax(logits), softmax(reference_logits)
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
