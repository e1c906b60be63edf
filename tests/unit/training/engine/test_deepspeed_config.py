"""DeepSpeed's configuration, made from ours."""

from __future__ import annotations

import pytest

from rlhf_ray.config.groups.training import ReferenceConfig, TrainingConfig
from rlhf_ray.training.engine.deepspeed_config import frozen_config, trained_config


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_in_float32(stage):
    config = trained_config(TrainingConfig(zero_stage=stage, dtype="float32"), on_cuda=False)
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"] == {"enabled": False}
    # The engine clips by itself at stage 0 alone: never twice, never not at all.
    assert config["gradient_clipping"] == (1.0 if stage else 0.0)


@pytest.mark.parametrize(("stage", "runs_as"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_stages_in_bfloat16(stage, runs_as):
    config = trained_config(TrainingConfig(zero_stage=stage, dtype="bfloat16"), on_cuda=False)
    assert config["zero_optimization"]["stage"] == runs_as
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["gradient_clipping"] == 1.0


@pytest.mark.parametrize("on_cuda", [False, True])
def test_offloading(on_cuda):
    settings = TrainingConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    zero = trained_config(settings, on_cuda=on_cuda)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": on_cuda}
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": on_cuda}
    plain = trained_config(TrainingConfig(zero_stage=3), on_cuda=on_cuda)["zero_optimization"]
    assert not {"offload_optimizer", "offload_param"} & plain.keys()


def test_a_frozen_role_is_sharded_and_has_no_optimizer():
    settings = ReferenceConfig(zero_stage=3, offload_parameters=True)
    config = frozen_config(settings, on_cuda=True)
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "gradient_clipping" not in config
    with pytest.raises(AssertionError, match="only ZeRO-3"):
        frozen_config(ReferenceConfig(zero_stage=0), on_cuda=True)
