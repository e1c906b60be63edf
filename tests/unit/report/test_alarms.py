"""Every alarm with a run that raises it and one that does not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import pytest

from rlhf_ray.report.alarms.alarm_checks import FIT_CHECKS, RL_CHECKS
from rlhf_ray.report.alarms.evidence import Evidence, check_all, rise
from rlhf_ray.report.rollouts.answer_measures import StepMeasures, repeated_share
from tests.unit.report.run_folders import group

STEPS = 50
NOISE = random.Random(1)
CURVES = {step: NOISE.gauss(0, 1) for step in range(1, STEPS + 1)}


def rows(values: Callable[[int], Mapping[str, float]]) -> list[dict[str, float]]:
    return [{"step": float(step), **values(step)} for step in range(1, STEPS + 1)]


def up(step: int, size: float = 1.0) -> float:
    """From 0 to `size`, with noise."""
    return size * (step / STEPS + 0.02 * CURVES[step])


def flat(step: int, size: float = 1.0) -> float:
    return size * (1 + 0.02 * CURVES[step])


def evaluated(step: int, value: float) -> dict[str, float]:
    return {"evaluation/greedy/reward/mean": value} if step % 5 == 0 else {}


def measured(responses: Sequence[str], rewards: Sequence[float] = (0, 1)) -> StepMeasures:
    """A step with ten prompts, whose answers name the prompt where they contain {}."""
    step = StepMeasures(step=1)
    for prompt in range(10):
        texts = [response.format(prompt) for response in responses]
        step.add_group(group(f"p{prompt}", texts, rewards))
    return step


def steps_with(first: Sequence[str], last: Sequence[str]) -> list[StepMeasures]:
    return [*(measured(first) for _ in range(6)), *(measured(last) for _ in range(6))]


OWN = ["the answer to question {} is here", "question {} has another one"]
PHRASE = "as a large model I am happy to help with {}"
LONG = "so we go on and on with it " * 12
CALL = '<tool_call>{{"name": "search"}}</tool_call> {}'

# Name of the alarm: the evidence that raises it, and one that is like it and quiet.
CASES: dict[str, tuple[Evidence, Evidence]] = {
    "value that is not finite": (
        Evidence(rows=rows(lambda s: {"policy/loss": math.nan if s == 7 else 1.0})),
        Evidence(rows=rows(lambda s: {"policy/loss": 1.0})),
    ),
    "longer answers, no better": (
        Evidence(
            rows=rows(
                lambda s: {"response/length_mean": 100 + up(s, 200), **evaluated(s, flat(s, 0.5))}
            )
        ),
        Evidence(
            rows=rows(lambda s: {"response/length_mean": 100 + up(s, 200), **evaluated(s, up(s))})
        ),
    ),
    "reward up, held-out down": (
        Evidence(rows=rows(lambda s: {"reward/mean": up(s), **evaluated(s, 1 - up(s))})),
        Evidence(rows=rows(lambda s: {"reward/mean": up(s), **evaluated(s, up(s))})),
    ),
    "one answer to everything": (
        Evidence(rows=(), measures=[measured(["yes", "number {}"])]),
        Evidence(rows=(), measures=[measured(OWN)]),
    ),
    "one phrase in everything": (
        Evidence(rows=(), measures=[measured([PHRASE, PHRASE])]),
        Evidence(rows=(), measures=[measured(OWN)]),
    ),
    "repetition": (
        Evidence(rows=(), measures=[measured([LONG, "fine {}"])]),
        Evidence(rows=(), measures=[measured(OWN)]),
    ),
    "groups of equal rewards": (
        Evidence(rows=(), measures=[measured(OWN, (1, 1))]),
        Evidence(rows=(), measures=[measured(OWN, (0, 1))]),
    ),
    "entropy collapse": (
        Evidence(rows=rows(lambda s: {"policy/entropy": 0.5 * 0.9**s})),
        Evidence(rows=rows(lambda s: {"policy/entropy": 0.5 - up(s, 0.2)})),
    ),
    "saturated part of the reward": (
        Evidence(rows=rows(lambda s: {"reward/format": min(1.0, s / 20), "reward/mean": up(s)})),
        Evidence(rows=rows(lambda s: {"reward/format": up(s), "reward/mean": 1.0})),
    ),
    "cut answers rewarded": (
        Evidence(
            rows=rows(lambda s: {"reward/mean": up(s), "response/truncated_fraction": up(s, 0.6)})
        ),
        Evidence(rows=rows(lambda s: {"reward/mean": up(s), "response/truncated_fraction": 0.05})),
    ),
    "tools no longer used": (
        Evidence(rows=(), measures=steps_with([CALL, CALL], OWN)),
        Evidence(rows=(), measures=steps_with(OWN, OWN)),
    ),
    "drift of engine and learner": (
        Evidence(rows=rows(lambda s: {"rollout/logprob_gap_mean": 1e-3 * (1 + s)})),
        Evidence(rows=rows(lambda s: {"rollout/logprob_gap_mean": flat(s, 1e-3)})),
    ),
    "stalled phase": (
        Evidence(rows=rows(lambda s: {"time/publish_s": 60.0 if s == 9 else 2.0})),
        Evidence(rows=rows(lambda s: {"time/publish_s": flat(s, 2.0), "time/step_s": 9.0 * s})),
    ),
    "failed groups": (
        Evidence(rows=rows(lambda s: {"rollout/failed_groups": 2.0}), prompts_per_step=16),
        Evidence(
            rows=rows(lambda s: {"rollout/failed_groups": float(s == 3)}), prompts_per_step=16
        ),
    ),
    "held-out loss rising": (
        Evidence(
            rows=rows(
                lambda s: {
                    "train/loss": 2 - up(s),
                    **({"eval/loss": 1 + abs(s - 20) / 20} if s % 10 == 0 else {}),
                }
            )
        ),
        Evidence(
            rows=rows(
                lambda s: {
                    "train/loss": 2 - up(s),
                    **({"eval/loss": 2 - s / STEPS} if s % 10 == 0 else {}),
                }
            )
        ),
    ),
}
CHECKS = RL_CHECKS | FIT_CHECKS


def test_every_alarm_has_its_cases():
    assert CASES.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", CASES)
def test_an_alarm_is_raised_and_its_control_is_quiet(name):
    raises, quiet = CASES[name]
    [raised] = check_all({name: CHECKS[name]}, raises)
    assert raised.state == "alarm"
    assert raised.text
    [control] = check_all({name: CHECKS[name]}, quiet)
    assert (control.state, control.text) == ("quiet", "")


@pytest.mark.parametrize("name", CASES)
def test_without_evidence_an_alarm_says_what_is_missing(name):
    [finding] = check_all({name: CHECKS[name]}, Evidence(rows=()))
    assert finding.state == "not checked"
    assert finding.text


def test_a_quiet_run_raises_no_alarm_at_all():
    evidence = Evidence(
        rows=rows(
            lambda s: {
                "reward/mean": up(s),
                "reward/exact": up(s),
                "policy/entropy": flat(s),
                "response/length_mean": flat(s, 100),
                "response/truncated_fraction": 0.0,
                "rollout/logprob_gap_mean": flat(s, 1e-6),
                "rollout/failed_groups": 0.0,
                "time/update_s": flat(s, 3),
                **evaluated(s, up(s)),
            }
        ),
        measures=steps_with(OWN, OWN),
        prompts_per_step=16,
    )
    assert {finding.state for finding in check_all(RL_CHECKS, evidence)} == {"quiet"}


def test_alarms_come_first():
    checks = {name: RL_CHECKS[name] for name in ("repetition", "stalled phase")}
    findings = check_all(checks, CASES["stalled phase"][0])
    assert [finding.name for finding in findings] == ["stalled phase", "repetition"]


def test_a_zero_group_fraction_of_the_builder_goes_before_the_files():
    evidence = Evidence(
        rows=rows(lambda s: {"advantages/zero_group_fraction": s / STEPS}),
        measures=[measured(OWN, (0, 1))],
    )
    [finding] = check_all({"a": RL_CHECKS["groups of equal rewards"]}, evidence)
    assert finding.text == "nothing can be learnt from 96% of the groups"


def test_a_trend_is_told_from_noise():
    # Ground truth: a line has no noise but its slope, and white noise has no trend.
    assert rise([float(i) for i in range(50)]) == pytest.approx(40.0)
    assert rise([1.0] * 20) == 0.0
    noise = random.Random(0)
    values = [rise([noise.gauss(0, 1) for _ in range(50)]) for _ in range(200)]
    assert sum(abs(value) > 2.0 for value in values) <= 2


def test_repetition_of_words():
    assert repeated_share(["a", "b", "c", "d", "e", "f", "g", "h"]) == 0.0
    # Of 9 runs of four words 4 are new: abcd, bcda, cdab, dabc.
    assert repeated_share(
        ["a", "b", "c", "d", "a", "b", "c", "d", "a", "b", "c", "d"]
    ) == pytest.approx(5 / 9)
    assert repeated_share(["a", "a", "a"]) == 0.0
