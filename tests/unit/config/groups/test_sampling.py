"""The files under conf/sampling: all of them compose, and plain changes nothing."""

from __future__ import annotations

import pytest

from rlhf_ray.config.compose import group_choices
from rlhf_ray.config.groups.sampling import SamplingConfig
from rlhf_ray.config.load import load_config


@pytest.mark.parametrize("choice", group_choices()["sampling"])
def test_every_choice_goes_with_the_demo(choice):
    sampling = load_config(["recipe=demo", f"sampling={choice}"]).sampling
    assert (sampling == SamplingConfig()) is (choice == "plain")


def test_off_by_default():
    assert load_config(["recipe=demo"]).sampling == SamplingConfig()


def test_a_weight_is_set_by_the_name_of_its_task():
    sampling = load_config(
        ["recipe=demo", "data.source_column=task", "sampling.task_weights.sums=2"]
    ).sampling
    assert sampling.task_weights == {"sums": 2.0}
