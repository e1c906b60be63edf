"""Names of the earlier release: refused in a configuration, read in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config.earlier_release import RENAMED_KEYS, earlier_key
from rlhf_ray.config.errors import ConfigError, RequestError
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.schema import all_keys
from rlhf_ray.driver.resume_changes import check_identity


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_renamed_key_is_refused_with_its_new_name(old: str, new: str) -> None:
    assert old not in all_keys()
    assert new in all_keys()
    with pytest.raises(ConfigError) as caught:
        read_config([f"{old}=1"])
    assert f"{old}: this key is now called {new}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("sampling=dapo", "sampling: this key is now called rollout_selection"),
        (
            "sampling.dynamic=true",
            "sampling.dynamic: this key is now called rollout_selection.dynamic",
        ),
    ],
)
def test_a_renamed_group_is_refused_with_its_new_name(override: str, new: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(["recipe=demo", override])
    assert new in str(caught.value)


def test_a_renamed_key_in_a_stage_of_a_pipeline() -> None:
    stages = "{a: {stage: sft, model: {path: x/y}, fit: {samples_per_step: 4}}}"
    from rlhf_ray.stages.pipeline import read_steps

    with pytest.raises(ConfigError, match=r"stages\.a: .*this key is now called fit\.batch_size"):
        read_steps(load_config(["stage=pipeline", f"pipeline.stages={stages}"]))


def test_a_checkpoint_of_the_earlier_release_goes_on() -> None:
    assert earlier_key("fit.batch_size") == "fit.samples_per_step"
    assert earlier_key("rollout_selection.oversample") == "sampling.oversample"
    assert earlier_key("seed") == "seed"
    folder = Path("checkpoints/step_000001")
    saved = {"seed": 0, "fit.samples_per_step": 16}
    check_identity(folder, saved, {"seed": 0, "fit.batch_size": 16})
    with pytest.raises(RequestError, match=r"fit\.batch_size=16 there, 8 here"):
        check_identity(folder, saved, {"seed": 0, "fit.batch_size": 8})
