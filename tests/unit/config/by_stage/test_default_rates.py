"""Default learning rates by stage, and what wins over them."""

from __future__ import annotations

import pytest

from rlhf_ray.config.by_stage.default_rates import STAGE_RATES, default_rates
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.config.load import read_config, to_yaml
from rlhf_ray.config.schema import all_keys
from rlhf_ray.config.stages import FIT_STAGES


def rate(*overrides: str) -> float | None:
    return read_config(overrides).training.learning_rate


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stage=rl"], 1e-6),
        (["stage=plan"], 1e-6),
        (["stage=sft"], 2e-5),
        (["stage=pretrain"], 5e-5),
        (["stage=pretrain", "model.random_weights=true"], 3e-4),
        (["stage=reward_model"], 1e-5),
        (["stage=preference"], 1e-6),
        (["stage=preference", "preference.loss=kto"], 1e-6),
        # An adapter: ten times as large.
        (["stage=sft", "training.lora.r=8"], 2e-4),
        (["stage=rl", "training.lora.r=8"], 1e-5),
        # What is said wins, wherever it is said.
        (["stage=sft", "training.learning_rate=1e-6"], 1e-6),
        (["stage=sft", "training.lora.r=8", "training.learning_rate=3e-5"], 3e-5),
        (["stage=sft", "training.learning_rate=0"], 0.0),
        (["recipe=demo"], 2e-4),
        (["recipe=gpu_70b"], 5e-7),
        (["recipe=demo", "training.learning_rate=null"], 1e-6),
    ],
)
def test_the_rate_of_a_stage(overrides: list[str], expected: float) -> None:
    assert rate(*overrides) == expected


def test_the_critic_has_its_own() -> None:
    assert read_config(["algorithm=ppo"]).critic.learning_rate == 1e-5
    assert read_config(["algorithm=ppo", "critic.lora.r=4"]).critic.learning_rate == 1e-4
    assert read_config(["recipe=demo_ppo"]).critic.learning_rate == 1e-3


def test_every_stage_that_learns_from_examples_has_a_rate() -> None:
    assert set(FIT_STAGES) <= set(STAGE_RATES)


def test_the_reference_says_the_same_numbers() -> None:
    told = all_keys()["training.learning_rate"].setting.help
    for stage in STAGE_RATES:
        value = default_rates(read_config([f"stage={stage}"]))["training.learning_rate"]
        assert f"{stage} {value:.0e}".replace("e-0", "e-") in told


def test_a_written_configuration_keeps_the_rate_in_another_stage(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(read_config(["stage=sft"])))
    assert rate(f"--config={tmp_path}/run.yaml") == 2e-5


def test_a_group_that_was_not_loaded_trains_at_the_rate_of_rl() -> None:
    assert TrainingConfig().peak_learning_rate == 1e-6
    assert TrainingConfig(learning_rate=0.0).peak_learning_rate == 0.0
