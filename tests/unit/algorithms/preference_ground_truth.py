"""The formulas of preference training in plain Python: lists, loops and floats, slow on purpose.

Like `ground_truth`: nothing here shares code or layout with the package.
"""

from __future__ import annotations

import itertools
import math


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reward_model_loss(chosen: float, rejected: float, margin: float, centering: float) -> float:
    """One pair; equation 2 of arXiv:2307.09288 and the regulariser of arXiv:2312.09244."""
    likelihood = sigmoid(chosen - rejected - margin)
    return -math.log(likelihood) + centering * (chosen + rejected) ** 2


def ranking_loss(rewards: list[float], ranks: list[int]) -> float | None:
    """One ranking; equation 1 of arXiv:2203.02155. None without a pair."""
    losses = []
    for better, worse in itertools.permutations(range(len(rewards)), 2):
        if ranks[better] < ranks[worse]:
            losses.append(-math.log(sigmoid(rewards[better] - rewards[worse])))
    if len(set(ranks)) == len(ranks) > 1:
        return math.fsum(losses) / math.comb(len(rewards), 2)
    return math.fsum(losses) / len(losses) if losses else None


def outcome(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def calibration_error(differences: list[float], num_bins: int) -> float:
    """Equation 3 of arXiv:1706.04599 for the predicted winner of every pair."""
    error = 0.0
    for place in range(num_bins):
        low, high = (0.5 + 0.5 * edge / num_bins for edge in (place, place + 1))
        last = place == num_bins - 1
        inside = [d for d in differences if low <= sigmoid(abs(d)) < (2.0 if last else high)]
        if inside:
            confidence = math.fsum(sigmoid(abs(d)) for d in inside) / len(inside)
            accuracy = math.fsum(outcome(d) for d in inside) / len(inside)
            error += len(inside) / len(differences) * abs(confidence - accuracy)
    return error


def calibration_error_of_both_orders(differences: list[float], num_bins: int) -> float:
    """The same by binning P(first wins) of (chosen, rejected) and (rejected, chosen)."""
    cases = [(sigmoid(d), 1.0) for d in differences] + [(sigmoid(-d), 0.0) for d in differences]
    bins: dict[int, list[tuple[float, float]]] = {}
    for probability, won in cases:
        bins.setdefault(min(int(probability * 2 * num_bins), 2 * num_bins - 1), []).append(
            (probability, won)
        )
    gaps = [
        abs(math.fsum(p for p, _ in rows) - math.fsum(w for _, w in rows)) for rows in bins.values()
    ]
    return math.fsum(gaps) / len(cases)


def log_ratio(logprob: float, reference: float, length: int, *, divide: bool) -> float:
    """One answer: log of the ratio of its probabilities, per token where asked for."""
    return (logprob - reference) / (max(length, 1) if divide else 1)


def preference_loss(gap: float, *, variant: str, beta: float, smoothing: float) -> float:
    """One pair, from the gap between its log ratios."""
    wins, loses = sigmoid(beta * gap), sigmoid(-beta * gap)
    if variant == "sigmoid":  # https://ericmitchell.ai/cdpo.pdf; arXiv:2305.18290, equation 7
        return -(1 - smoothing) * math.log(wins) - smoothing * math.log(loses)
    if variant == "robust":  # arXiv:2403.00409
        kept, flipped = -math.log(wins), -math.log(loses)
        return ((1 - smoothing) * kept - smoothing * flipped) / (1 - 2 * smoothing)
    if variant == "ipo":  # arXiv:2310.12036, equation 17
        return (gap - 1 / (2 * beta)) ** 2
    assert variant == "hinge"  # arXiv:2309.06657
    return 1 - beta * gap if beta * gap < 1 else 0.0


def reference_point(log_ratios: list[float]) -> float:
    """z0 of arXiv:2402.01306, section 4, from the mismatched answers of the whole batch."""
    return max(0.0, math.fsum(log_ratios) / len(log_ratios))


def mismatched_rows(prompts: list[str]) -> list[int]:
    """Walk back from every row, over the end to the last one, to the first other prompt."""
    found = []
    for row, prompt in enumerate(prompts):
        other = row
        while prompts[other] == prompt:
            other = (other - 1) % len(prompts)
        found.append(other)
    return found


def kto_loss(
    log_ratio: float, good: bool, point: float, *, beta: float, weights: tuple[float, float]
) -> float:
    """One answer: lambda_y - v(x, y) of arXiv:2402.01306, section 4."""
    desirable, undesirable = weights
    if good:
        return desirable - desirable * sigmoid(beta * (log_ratio - point))
    return undesirable - undesirable * sigmoid(beta * (point - log_ratio))
