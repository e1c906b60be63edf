"""A real run that goes on with another number of ranks, at another ZeRO stage."""

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
