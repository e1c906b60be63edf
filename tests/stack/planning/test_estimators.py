"""The planner against the estimators of DeepSpeed and vLLM, from the same configurations."""

from __future__ import annotations

import json

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs_all_cold
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs_all_cold

from rlhf_ray.config.deepspeed.zero import TrainedZeroConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.planning.shape import ModelShape, model_shape
from rlhf_ray.planning.states import trained_states
from tests.unit.planning.models import QWEN_7B, QWEN_30B_MOE

pytestmark = [pytest.mark.stack, pytest.mark.nightly]

GIB = 2**30
RANKS = 8


def known(values: dict) -> ModelShape:
    shape = model_shape(values)
    assert shape is not None
    return shape


def printed(capsys, estimate, **arguments) -> dict[str, tuple[float, float]]:
    """GiB of the host for a node and of each GPU, by the options of the row."""
    estimate(num_gpus_per_node=RANKS, num_nodes=1, additional_buffer_factor=1.0, **arguments)
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 3 and cells[0].endswith("GB") and cells[1].endswith("GB"):
            host, device = (float(cell.removesuffix("GB")) for cell in cells[:2])
            rows[cells[2].replace(" ", "")] = (host, device)
    assert rows
    return rows


def planned(stage: int, *, offload: bool) -> tuple[float, float]:
    """GiB of the host for all ranks, and of a GPU, in the number formats of the estimators."""
    shape = known(QWEN_7B)
    role = TrainingConfig(
        num_ranks=RANKS,
        zero_stage=stage,
        offload_optimizer=offload,
        zero=TrainedZeroConfig(gradient_dtype="bfloat16", max_live_elements=0, prefetch_elements=0),
    )
    states = trained_states(role, shape, trained=float(shape.weights), on_gpu=True)
    device = {**states.device, **states.step}
    device.pop("gathered weights", None)
    return RANKS * sum(states.host.values()) / GIB, sum(device.values()) / GIB


def test_zero_2(capsys):
    rows = printed(
        capsys, estimate_zero2_model_states_mem_needs_all_cold, total_params=known(QWEN_7B).weights
    )
    # 2 bytes, and 18 of a share: gradients in both formats, and the states.
    assert planned(2, offload=False)[1] == pytest.approx(
        rows["offload_optimizer=none"][1], rel=0.01
    )
    host, device = planned(2, offload=True)
    (expected,) = [row for options, row in rows.items() if not options.endswith("none")]
    assert device == pytest.approx(expected[1], rel=0.01)
    # The estimator counts as many copies of the weights while they are loaded.
    assert 18 * known(QWEN_7B).weights / GIB == pytest.approx(host, rel=0.01)
    assert host < expected[0]


def test_zero_3(capsys):
    rows = printed(
        capsys,
        estimate_zero3_model_states_mem_needs_all_cold,
        total_params=known(QWEN_7B).weights,
        largest_layer_params=0,
    )
    key = "offload_param=none,offload_optimizer=none,zero_init=1"
    # The step of a share has its gradients in float32 next to those in bfloat16, which the
    # estimator leaves out: 2 bytes of 20.
    assert planned(3, offload=False)[1] == pytest.approx(rows[key][1], rel=0.12)


@pytest.mark.parametrize("values", [QWEN_7B, QWEN_30B_MOE])
def test_decoding_reads_and_computes_what_vllm_counts(values, tmp_path):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.metrics.perf import ExecutionContext, ModelMetrics

    from rlhf_ray.planning.devices import DEVICES
    from rlhf_ray.planning.roofline import EngineSpeed

    architecture = {"qwen2": "Qwen2ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
    content = values | {
        "architectures": [architecture[values["model_type"]]],
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
        "norm_topk_prob": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    arguments = EngineArgs(
        model=str(tmp_path), skip_tokenizer_init=True, load_format="dummy", max_model_len=4096
    )
    counted = ModelMetrics(arguments.create_engine_config())
    running, context = 64, 2000
    batch = ExecutionContext()
    for _ in range(running):
        batch.add(1, context, is_prefill=False)
    shape = known(values)
    width = shape.query_width + shape.output_width
    products = 2 * running * (shape.active_weights + shape.layers * width * context)
    assert products == pytest.approx(counted.get_num_flops(batch), rel=0.02)
    engine = EngineSpeed(shape=shape, device=DEVICES["h100-80g"], gpus=1, at_once=64)
    read = 2 * (engine._read_weights(running) + running * context * shape.cache_values)
    assert read == pytest.approx(counted.get_read_bytes(batch), rel=0.05)
