"""DeepSpeed's configuration, made from ours."""

from __future__ import annotations

import pytest

from rlhf_ray.config.deepspeed.zero import TrainedZeroConfig, ZeroConfig
from rlhf_ray.config.groups.training import ReferenceConfig, TrainingConfig
from rlhf_ray.training.engine.deepspeed_config import (
    frozen_config,
    nodes_problem,
    trained_config,
)


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


GATHERING = {
    "hpz_partition_size": 8,
    "prefetch_elements": 1,
    "max_live_elements": 2,
    "max_reuse_elements": 3,
    "persistence_elements": 4,
}
GATHERED = {
    "zero_hpz_partition_size": 8,
    "stage3_prefetch_bucket_size": 1,
    "stage3_max_live_parameters": 2,
    "stage3_max_reuse_distance": 3,
    "stage3_param_persistence_threshold": 4,
}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_settings_of_zero(stage):
    zero = TrainedZeroConfig(
        **GATHERING,
        reduce_bucket_elements=5,
        allgather_bucket_elements=6,
        communication_dtype="bfloat16",
        gradient_dtype="bfloat16",
    )
    settings = TrainingConfig(zero_stage=stage, dtype="float32", zero=zero)
    config = trained_config(settings, on_cuda=False)
    assert config["communication_data_type"] == "bf16"
    assert config["data_types"]["grad_accum_dtype"] == "bf16"
    found = config["zero_optimization"]
    assert (found["reduce_bucket_size"], found["allgather_bucket_size"]) == (5, 6)
    assert {key: found[key] for key in GATHERED if key in found} == (GATHERED if stage == 3 else {})


def test_settings_of_zero_of_a_frozen_role():
    settings = ReferenceConfig(zero_stage=3, zero=ZeroConfig(**GATHERING))
    found = frozen_config(settings, on_cuda=False)["zero_optimization"]
    assert {key: found[key] for key in GATHERED} == GATHERED
    assert "reduce_bucket_size" not in found


def test_further_keys_are_passed_on():
    extra = {"dump_state": True, "zero_optimization": {"sub_group_size": 9, "overlap_comm": True}}
    trained = TrainingConfig(zero_stage=3, extra_deepspeed_config=extra)
    frozen = ReferenceConfig(zero_stage=3, extra_deepspeed_config=extra)
    for config in (trained_config(trained, on_cuda=False), frozen_config(frozen, on_cuda=False)):
        assert config["dump_state"] is True
        assert config["zero_optimization"]["sub_group_size"] == 9
        assert config["zero_optimization"]["overlap_comm"] is True
        assert config["zero_optimization"]["stage"] == 3


def test_a_group_of_hpz_is_on_one_node():
    assert nodes_problem(["a", "a", "b", "b"], 2) == ""
    assert nodes_problem(["a", "a", "a", "a"], 4) == ""
    problem = nodes_problem(["a", "a", "a", "b"], 2)
    assert "ranks 2 to 3 are on the nodes a, b" in problem
    assert "hpz_partition_size=2" in problem
