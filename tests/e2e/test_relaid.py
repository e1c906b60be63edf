"""Real runs that go on with another number of ranks, at another ZeRO stage."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.stack
SFT = (
    "stage=sft",
    "examples.path=rlhf_ray.data.builtin:arithmetic",
    "examples.limit=64",
    "fit.batch_size=8",
    "fit.max_steps=5",
    "checkpoint.every_steps=2",
)
TWO = ("training.num_ranks=2", "training.zero_stage=2")
ONE = ("training.num_ranks=1", "training.zero_stage=1")
THREE = ("training.num_ranks=2", "training.zero_stage=3")
WHOLE = ("training.num_ranks=1", "training.zero_stage=0")
RL = (
    "num_steps=3",
    "checkpoint.every_steps=2",
    "algorithm.kl_coefficient=0.05",
    "training.cpu_threads=1",
    "training.num_cpus=0.2",
    "generation.num_cpus=0.2",
    "reference.num_cpus=0.2",
)
PPO = (
    "algorithm=ppo",
    "algorithm.reference_every=1",
    "algorithm.reference_decay=0.5",
    "critic.cpu_threads=1",
    "critic.num_cpus=0.2",
)
# Each rank, or each place where sums over ranks are rounded, has its own.
OF_A_LAYOUT = ("time/", "engine/")
# A run takes half a minute on a machine that has nothing else to do.
PATIENCE_S = 600


@pytest.mark.nightly
@pytest.mark.timeout(3 * PATIENCE_S)
@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (TWO, ONE, "saved by 2 ranks at zero_stage=2, resumed on 1 rank at zero_stage=1"),
        (ONE, TWO, "saved by 1 rank at zero_stage=1, resumed on 2 ranks at zero_stage=2"),
        (
            (*TWO, "checkpoint.background=true"),
            ONE,
            "saved by 2 ranks at zero_stage=2, resumed on 1 rank at zero_stage=1",
        ),
    ],
)
def test_a_run_goes_on_with_other_ranks(make_run, before, after, words):
    straight = make_run(*SFT, *before).succeed(PATIENCE_S)
    folder = straight.output / "checkpoints" / "step_000002"
    resumed = make_run(*SFT, *after, f"resume={folder}", output="resumed").succeed(PATIENCE_S)
    text = " ".join(resumed.text.split())
    assert f"learner: {words}" in text
    assert f"resumed after step 2 from {folder}" in text
    expected = {row["step"]: row for row in straight.metrics()}
    found = {row["step"]: row for row in resumed.metrics()}
    assert sorted(step for step in found if step > 2) == [3, 4, 5]
    for step in (3, 4, 5):
        for name in ("train/loss", "train/grad_norm", "train/learning_rate"):
            assert found[step][name] == pytest.approx(expected[step][name], rel=1e-6), (step, name)


def go_on(make_run, before, after, *settings):
    """The rows of step 3, from the undisturbed run and from the one in another layout."""
    straight = make_run(*RL, *settings, *before).succeed(PATIENCE_S)
    folder = straight.output / "checkpoints" / "step_000002"
    options = (*RL, *settings, *after, f"resume={folder}")
    resumed = make_run(*options, output="resumed").succeed(PATIENCE_S)
    assert f"resumed after step 2 from {folder}" in " ".join(resumed.text.split())
    (found,) = [row for row in resumed.metrics() if row["step"] == 3]
    expected = straight.metrics()[-1]
    # The engines have the same weights, and sample the same tokens.
    texts = [[row["response"] for row in run.rollouts(3)] for run in (straight, resumed)]
    assert texts[0] == texts[1]
    assert found.keys() == expected.keys()
    return resumed, expected, found


def assert_same_step(expected, found) -> None:
    """Losses and log-probabilities are sums over tokens: ranks change their last digits alone."""
    names = [name for name in expected if not name.startswith(OF_A_LAYOUT)]
    # The loss itself is 0 on answers of the newest weights, but for the penalty.
    for name in ("policy/grad_norm", "kl/reference", "reward/mean"):
        assert expected[name] != 0
    for name in names:
        rel = 1e-5 if name.endswith("grad_norm") else 1e-6
        assert found[name] == pytest.approx(expected[name], rel=rel, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE_S)
def test_reinforcement_learning_goes_on_with_more_ranks(make_run):
    resumed, expected, found = go_on(make_run, WHOLE, TWO)
    words = "learner: saved by 1 rank at zero_stage=0, resumed on 2 ranks at zero_stage=2"
    assert words in " ".join(resumed.text.split())
    assert_same_step(expected, found)


@pytest.mark.nightly
@pytest.mark.timeout(3 * PATIENCE_S)
@pytest.mark.parametrize(("before", "after"), [(WHOLE, THREE), (THREE, WHOLE), (TWO, ONE)])
def test_all_roles_go_on_in_another_layout(make_run, before, after):
    """A critic and a reference that moves change their layout with the learner."""

    def every(layout):
        roles = ("training", "critic", "reference")
        of_roles = [text.replace("training", role) for role in roles for text in layout]
        # A reference is whole, or sharded by ZeRO-3.
        allowed = ("reference.zero_stage=1", "reference.zero_stage=2")
        return [text for text in of_roles if text not in allowed]

    resumed, expected, found = go_on(make_run, every(before), every(after), *PPO)
    text = " ".join(resumed.text.split())
    for role in ("learner", "critic", "reference"):
        assert f"{role}: saved by" in text
    assert expected["value/loss"] != 0
    assert_same_step(expected, found)
