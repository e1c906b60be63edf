"""The alarms, each a function of the evidence; the table is at the end."""

from __future__ import annotations

import math
import statistics

from rlhf_ray.report.alarms.evidence import (
    MIN_STEPS,
    Check,
    Evidence,
    NotCheckedError,
    Rows,
    ends,
    finite,
    middle_of,
    rise,
    series,
)

# Change of a curve in units of its noise that counts as up or down.
_TREND = 2.0
# Answers of so many prompts are needed before one answer can be called common.
_MIN_PROMPTS = 8
_HELD_OUT = (
    "evaluation/greedy/reward/mean",
    "evaluation/sampled/reward/mean",
    "evaluation/greedy/success_share",
    "evaluation/sampled/success_share",
)
# Phases shorter than this may vary by any factor.
_MIN_STALL_S = 5.0


def not_finite(evidence: Evidence) -> str | None:
    """Any metric that is NaN or infinite in any step."""
    if not evidence.rows:
        raise NotCheckedError("there are no metrics")
    found = {
        name: int(row["step"])
        for row in reversed(evidence.rows)
        for name, value in row.items()
        if not math.isfinite(value)
    }
    if not found:
        return None
    name, step = min(found.items(), key=lambda pair: pair[1])
    return f"{len(found)} metrics were not finite, first {name} in step {step}"


def longer_not_better(evidence: Evidence) -> str | None:
    """Answers become 30 percent longer, and held-out answers no better."""
    lengths = series(evidence.rows, "response/length_mean")
    name, held_out = _held_out(evidence.rows)
    first, last = ends(lengths)
    before, after = ends(held_out)
    if last > 1.3 * first and rise(lengths) > _TREND and rise(held_out) < _TREND:
        return (
            f"answers grew from {first:.0f} to {last:.0f} tokens, while {name} went from "
            f"{before:.3g} to {after:.3g}"
        )
    return None


def proxy_gap(evidence: Evidence) -> str | None:
    """The trained reward rises, and a held-out measure falls."""
    rewards = series(evidence.rows, "reward/mean")
    name, held_out = _held_out(evidence.rows)
    if rise(rewards) > _TREND and rise(held_out) < -_TREND:
        (a, b), (c, d) = ends(rewards), ends(held_out)
        return f"reward/mean rose from {a:.3g} to {b:.3g}, {name} fell from {c:.3g} to {d:.3g}"
    return None


def one_answer(evidence: Evidence) -> str | None:
    """One answer to half of the prompts of a step, in the last steps that were read."""
    steps = [m for m in evidence.measures[-3:] if m.num_prompts >= _MIN_PROMPTS]
    if not steps:
        raise NotCheckedError(f"no step with rollouts of {_MIN_PROMPTS} prompts was read")
    answer, share = max((m.most_common_answer() for m in steps), key=lambda pair: pair[1])
    return f"{answer[:80]!r} answers {share:.0%} of the prompts" if share > 0.5 else None


def one_phrase(evidence: Evidence) -> str | None:
    """Eight words in a row in half of the answers, in the last steps that were read."""
    steps = [m for m in evidence.measures[-3:] if m.num_prompts >= _MIN_PROMPTS]
    if not steps:
        raise NotCheckedError(f"no step with rollouts of {_MIN_PROMPTS} prompts was read")
    words, share = max((m.most_common_ngram() for m in steps), key=lambda pair: pair[1])
    return f"{words[:120]!r} is in {share:.0%} of the answers" if share > 0.5 else None


def repetition(evidence: Evidence) -> str | None:
    """A fifth of the answers repeats itself, in the last steps that were read."""
    share = statistics.median(middle_of(evidence.measures, "repetitive answers")[-3:])
    return (
        f"{share:.0%} of the answers repeat more than half of themselves" if share > 0.2 else None
    )


def no_signal(evidence: Evidence) -> str | None:
    """Most groups have equal rewards in the last tenth of the run."""
    try:
        shares = series(evidence.rows, "advantages/zero_group_fraction", at_least=1)
    except NotCheckedError:
        shares = middle_of(evidence.measures, "groups of equal rewards")
    share = statistics.median(shares[-max(1, len(shares) // 10) :])
    return f"nothing can be learnt from {share:.0%} of the groups" if share > 0.7 else None


def entropy_collapse(evidence: Evidence) -> str | None:
    """The entropy of the policy is a fifth of what it was, and small."""
    first, last = ends(series(evidence.rows, "policy/entropy"))
    if last < 0.2 * first and last < 0.1:
        return f"the entropy of a token fell from {first:.3g} to {last:.3g} nats"
    return None


def saturated_part(evidence: Evidence) -> str | None:
    """A part of the reward rose, and has not moved in the last fifth of the run."""
    names = {
        name
        for row in evidence.rows
        for name in row
        if name.startswith("reward/") and name.count("/") == 1
    } - {"reward/mean", "reward/std", "reward/baseline"}
    found: list[str] = []
    num_checked = 0
    for name in sorted(names):
        values = finite(row.get(name, math.nan) for row in evidence.rows)
        if len(values) < 2 * MIN_STEPS:
            continue
        num_checked += 1
        last, whole = values[-max(5, len(values) // 5) :], max(values) - min(values)
        is_still = max(last) - min(last) <= 0.02 * whole
        if whole > 1e-9 and is_still and statistics.fmean(last) >= max(values) - 0.02 * whole:
            found.append(f"{name} at {statistics.fmean(last):.3g}")
    if not num_checked:
        raise NotCheckedError(f"no part of the reward has {2 * MIN_STEPS} values")
    return f"at its highest and without movement: {', '.join(found)}" if found else None


def cut_for_reward(evidence: Evidence) -> str | None:
    """The reward rises together with the share of answers that are cut at the limit."""
    cut = series(evidence.rows, "response/truncated_fraction")
    rewards = series(evidence.rows, "reward/mean")
    first, last = ends(cut)
    if last > first + 0.1 and rise(cut) > _TREND and rise(rewards) > _TREND:
        return f"answers cut at the limit went from {first:.0%} to {last:.0%} while the reward rose"
    return None


def tools_unused(evidence: Evidence) -> str | None:
    """Answers called tools at first, and no longer do."""
    shares = middle_of(evidence.measures, "answers with a tool call", least=4)
    first, last = ends(shares)
    if first > 0.1 and last < 0.1 * first:
        return f"answers with a call of a tool went from {first:.0%} to {last:.0%}"
    return None


def gap_drift(evidence: Evidence) -> str | None:
    """Engine and learner disagree five times as much as at the beginning."""
    found: list[str] = []
    checked = False
    for name in ("publish/probe_gap_max", "rollout/logprob_gap_mean"):
        try:
            first, last = ends(series(evidence.rows, name))
        except NotCheckedError:
            continue
        checked = True
        if last > 5 * max(first, 1e-6):
            found.append(f"{name} went from {first:.2g} to {last:.2g} nats")
    if not checked:
        raise NotCheckedError(f"no gap between engine and learner has {MIN_STEPS} values")
    return "; ".join(found) or None


def stalled_phase(evidence: Evidence) -> str | None:
    """A phase took five times its median once, and seconds."""
    found: list[tuple[float, str]] = []
    names = {name for row in evidence.rows for name in row if name.startswith("time/")}
    checked = False
    for name in sorted(names - {"time/step_s"}):
        times = [(row[name], int(row["step"])) for row in evidence.rows if name in row]
        times = [(seconds, step) for seconds, step in times if math.isfinite(seconds)]
        if len(times) < MIN_STEPS:
            continue
        checked = True
        median = statistics.median(seconds for seconds, _ in times)
        slowest, step = max(times)
        if slowest > max(5 * median, median + _MIN_STALL_S):
            phase = name.removeprefix("time/").removesuffix("_s")
            words = f"{phase} took {slowest:.1f} s in step {step}, {median:.1f} s as a rule"
            found.append((slowest - median, words))
    if not checked:
        raise NotCheckedError(f"no phase has {MIN_STEPS} times")
    return "; ".join(words for _, words in sorted(found, reverse=True)[:3]) or None


def failure_rate(evidence: Evidence) -> str | None:
    """More than one in twenty groups failed."""
    failed = series(evidence.rows, "rollout/failed_groups", at_least=1)
    if evidence.prompts_per_step is None:
        raise NotCheckedError("prompts_per_step is not known")
    asked = evidence.prompts_per_step * len(failed) + sum(failed)
    share = sum(failed) / asked
    return f"{sum(failed):.0f} groups failed, {share:.1%} of all" if share > 0.05 else None


def held_out_loss(evidence: Evidence) -> str | None:
    """The held-out loss rises again while the trained loss falls."""
    trained = series(evidence.rows, "train/loss")
    held_out = series(evidence.rows, "eval/loss", at_least=3)
    lowest = min(held_out)
    if rise(trained) < -_TREND and held_out[-1] > lowest + 0.1 * abs(held_out[0] - lowest) + 1e-9:
        return f"the held-out loss is {held_out[-1]:.4g}, and was {lowest:.4g}"
    return None


def _held_out(rows: Rows) -> tuple[str, list[float]]:
    """Name and values of the first held-out measure there is."""
    for name in _HELD_OUT:
        values = finite(row.get(name, math.nan) for row in rows)
        if len(values) >= 4:
            return name, values
    raise NotCheckedError(
        "there are fewer than 4 evaluations of held-out prompts (evaluation.every)"
    )


# The alarms of a run that has rewards, and of one that learns from examples.
RL_CHECKS: dict[str, Check] = {
    "value that is not finite": not_finite,
    "longer answers, no better": longer_not_better,
    "reward up, held-out down": proxy_gap,
    "one answer to everything": one_answer,
    "one phrase in everything": one_phrase,
    "repetition": repetition,
    "groups of equal rewards": no_signal,
    "entropy collapse": entropy_collapse,
    "saturated part of the reward": saturated_part,
    "cut answers rewarded": cut_for_reward,
    "tools no longer used": tools_unused,
    "drift of engine and learner": gap_drift,
    "stalled phase": stalled_phase,
    "failed groups": failure_rate,
}
FIT_CHECKS: dict[str, Check] = {
    "value that is not finite": not_finite,
    "held-out loss rising": held_out_loss,
    "stalled phase": stalled_phase,
}
