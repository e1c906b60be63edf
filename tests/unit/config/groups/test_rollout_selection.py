"""The files under conf/rollout_selection: all of them compose, and plain changes nothing."""

from __future__ import annotations

import pytest

from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.load import load_config


@pytest.mark.parametrize("choice", group_choices()["rollout_selection"])
def test_every_choice_goes_with_the_demo(choice):
    selection = load_config(["recipe=demo", f"rollout_selection={choice}"]).rollout_selection
    assert (selection == RolloutSelectionConfig()) is (choice == "plain")


def test_off_by_default():
    assert load_config(["recipe=demo"]).rollout_selection == RolloutSelectionConfig()


def test_a_weight_is_set_by_the_name_of_its_task():
    selection = load_config(
        ["recipe=demo", "data.source_column=task", "rollout_selection.task_weights.sums=2"]
    ).rollout_selection
    assert selection.task_weights == {"sums": 2.0}
