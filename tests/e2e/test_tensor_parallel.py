"""Runs whose ranks hold models in slices: the numbers of one rank for each role."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.testing.tiny import tiny_random
from tests.e2e.test_sequence_parallel import COMPARED, PPO

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500), pytest.mark.nightly]

ROLES = ("training", "critic", "reference")
SLICES = (
    *(f"{role}.num_ranks=2" for role in ROLES),
    *(f"{role}.tensor_parallel_size=2" for role in ROLES),
    "training.zero_stage=2",
    "critic.zero_stage=1",
)


@pytest.fixture(scope="module")
def model_with_two_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose keys and values two ranks can divide, too."""
    folder = tmp_path_factory.mktemp("two_heads") / "model"
    return tiny_random(folder, sizes=TinySizes(num_key_value_heads=2))


def test_slices_give_the_numbers_of_one_rank(make_run, model_with_two_heads):
    model = f"model.path={model_with_two_heads}"
    alone = make_run(*PPO, model, output="alone").succeed(600)
    together = make_run(*PPO, *SLICES, model, output="together").succeed(600)
    assert "training.num_ranks = 2 / training.tensor_parallel_size = 2" in together.text
    for one, two in zip(alone.metrics(), together.metrics(), strict=True):
        for name in COMPARED:
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=2e-5), name
        assert two["publish/probe_gap_max"] < 1e-3


def test_heads_that_cannot_be_divided_are_refused_before_any_worker(make_run):
    run = make_run("training.num_ranks=2", "training.tensor_parallel_size=2")
    assert run.wait(120) == 2
    assert "training.tensor_parallel_size=2: model.path is" in run.text
    assert "num_key_value_heads=1" in run.text
