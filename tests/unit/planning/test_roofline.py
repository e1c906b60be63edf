"""Work of a token against torch's counter, lengths against sums, seconds against hand-made ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.config.load import load_config
from rlhf_ray.planning.devices import DEVICES
from rlhf_ray.planning.lengths import Lengths
from rlhf_ray.planning.roofline import (
    CALIBRATED,
    CHECKPOINTED,
    FORWARD,
    EngineSpeed,
    Split,
    decode_seconds,
    pass_seconds,
)
from rlhf_ray.planning.shape import ModelShape, model_shape
from rlhf_ray.planning.step import step_lines, step_seconds
from tests.unit.planning.models import QWEN_7B, QWEN_30B_MOE, QWEN_72B

H100 = DEVICES["h100-80g"]
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}


def known(values: dict) -> ModelShape:
    shape = model_shape(values)
    assert shape is not None
    return shape


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_token_takes_the_operations_that_torch_counts(family):
    values = {"model_type": family, **SMALL}
    fields = {name: value for name, value in values.items() if name != "model_type"}
    config = AutoConfig.for_model(family, **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tokens = 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    shape = known(values)
    # The counter takes attention to be over all pairs of tokens; half of them are masked.
    attended = 2 * shape.layers * (shape.query_width + shape.output_width) * tokens * tokens
    assert counter.get_total_flops() == 2 * shape.active_weights * tokens + attended
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == shape.weights


@pytest.mark.parametrize(("mean", "longest"), [(1000, 4096), (3250, 4096), (4096, 4096), (5, 4096)])
def test_lengths_have_the_mean_and_the_square_that_sums_give(mean, longest):
    lengths = Lengths(prompt=100, mean=mean, longest=longest)
    survivors = [lengths.running(token + 0.5) for token in range(longest)]
    assert sum(survivors) == pytest.approx(mean, rel=2e-3)
    # E[s * s] = prompt^2 + the integral of 2 (prompt + t) P(longer than t).
    square = 100**2 + sum(2 * (100.5 + t) * left for t, left in enumerate(survivors))
    assert lengths.context == pytest.approx(square / (100 + mean), rel=1e-3)


def test_the_longest_of_many_is_longer():
    lengths = Lengths(prompt=0, mean=100, longest=100_000)
    assert lengths.last(1) == pytest.approx(100)
    assert lengths.last(math.e**3) == pytest.approx(300, rel=1e-3)
    assert Lengths(prompt=0, mean=100, longest=200).last(1000) == 200


def test_a_large_model_is_bound_by_its_products():
    shape = known(QWEN_72B)
    timed = pass_seconds(shape, H100, CHECKPOINTED, tokens=1000, context=1000)
    products = 8 * 1000 * shape.active_weights / (989e12 * 0.7 * CALIBRATED.gemm)
    assert timed.binds == "matrix products"
    assert products < timed.seconds < 1.3 * products
    # Four ranks that share layers pay for messages, and eight stages with one micro-batch wait.
    sliced = pass_seconds(
        shape, H100, CHECKPOINTED, tokens=1000, context=1000, split=Split(tensor=4)
    )
    assert sliced.seconds > timed.seconds
    staged = Split(pipeline=8, micro_batches=1)
    waits = pass_seconds(shape, H100, CHECKPOINTED, tokens=1000, context=1000, split=staged)
    assert waits.seconds == pytest.approx(8 * timed.seconds, rel=1e-6)


def test_gathers_bind_where_micro_batches_are_small():
    shape = known(QWEN_72B)
    split = Split(gathered_bytes=4 * shape.weights, nodes=4)
    few, many = (
        pass_seconds(
            shape, H100, FORWARD, tokens=8192, context=500, split=split, micro_batch=micro_batch
        )
        for micro_batch in (256, 8192)
    )
    assert few.binds == "gathers of weights"
    # 32 gathers of all weights over eight cards of 50 GB a second.
    assert few.seconds == pytest.approx(32 * 4 * shape.weights / (8 * 50e9 * 0.8), rel=1e-6)
    assert many.binds == "matrix products"
    assert many.seconds < few.seconds


def test_an_engine_waits_for_the_longest_answer_unless_the_next_batch_goes_on():
    engine = EngineSpeed(shape=known(QWEN_7B), device=H100, gpus=1, at_once=256)
    lengths = Lengths(prompt=100, mean=500, longest=8000)
    waits = decode_seconds(engine, lengths, samples=128).seconds
    goes_on = decode_seconds(engine, lengths, samples=128, goes_on=True).seconds
    assert waits > 3 * goes_on
    same = Lengths(prompt=100, mean=8000, longest=8000)
    assert decode_seconds(engine, same, samples=128).seconds == pytest.approx(
        decode_seconds(engine, same, samples=128, goes_on=True).seconds, rel=0.02
    )


def test_a_cache_for_few_samples_makes_the_others_wait():
    lengths = Lengths(prompt=100, mean=1000, longest=2000)
    fast, slow = (
        decode_seconds(
            EngineSpeed(shape=known(QWEN_7B), device=H100, gpus=1, at_once=at_once),
            lengths,
            samples=256,
        )
        for at_once in (256, 16)
    )
    assert slow.seconds > 5 * fast.seconds
    assert slow.binds.endswith("16 of 256 samples run at once")


def test_few_tokens_read_few_experts():
    engine = EngineSpeed(shape=known(QWEN_30B_MOE), device=H100, gpus=1, at_once=256)
    one, all_of_them = engine._read_weights(1), engine._read_weights(10_000)
    shape = known(QWEN_30B_MOE)
    # The embedding is not read: a row of it is.
    assert all_of_them == pytest.approx(shape.weights - shape.embedding)
    assert one == pytest.approx(shape.active_weights, rel=1e-3)


PLANNED = ["recipe=gpu_7b", "stage=plan"]


def test_a_step_overlaps_if_samples_may_be_stale():
    shape = known(QWEN_7B)
    step = step_seconds(load_config(PLANNED), shape)
    assert step is not None
    assert step.overlaps
    parts = {name: phase.seconds for name, phase in step.phases.items()}
    assert list(parts) == ["generate", "update", "publish", "checkpoint"]
    learning = parts["update"] + parts["checkpoint"]
    assert step.seconds == pytest.approx(max(parts["generate"], learning) + parts["publish"])
    assert step.tokens_per_gpu == pytest.approx(512 * 1280 / step.seconds / 8)
    waiting = step_seconds(load_config([*PLANNED, "max_staleness=0"]), shape)
    assert waiting is not None
    parts = {name: phase.seconds for name, phase in waiting.phases.items()}
    # With fresh samples the learner scores them before the first of four optimizer steps.
    assert "score (learner)" in parts
    assert waiting.seconds == pytest.approx(sum(parts.values()))


@pytest.mark.parametrize(
    ("change", "phase", "factor"),
    [
        ("plan.mean_response_tokens=2048", "update", 1.8),
        ("prompts_per_step=128", "update", 2.0),
        ("training.gradient_checkpointing=false", "update", 0.76),
        ("algorithm.num_epochs=2", "update", 2.0),
        # Half of the samples, and as many weights to read in every step.
        ("generation.num_engines=8", "generate", 0.79),
        ("checkpoint.every_steps=100", "checkpoint", 0.5),
        ("plan.device=h200-141g", "update", 0.97),
    ],
)
def test_settings_change_the_seconds(change, phase, factor):
    shape = known(QWEN_7B)
    before, after = (step_seconds(load_config([*PLANNED, *more]), shape) for more in ([], [change]))
    assert before is not None
    assert after is not None
    found = after.phases[phase].seconds / before.phases[phase].seconds
    assert found == pytest.approx(factor, rel=0.06)


def test_lines_say_what_binds():
    lines = step_lines(load_config(PLANNED), QWEN_7B)
    assert "8 h100-80g: 512 samples of 256 + 1,024 tokens" in lines[0]
    assert lines[0].endswith("to about 20 %")
    assert "not counted" in step_lines(load_config(PLANNED), QWEN_30B_MOE)[0]
    assert "tokens/s/GPU; it is bound by update: matrix products" in lines[-1]
    assert step_lines(load_config([*PLANNED, "plan.device=null"]), QWEN_7B) == []
    assert step_lines(load_config(["recipe=demo", "plan.device=h100-80g"]), QWEN_7B) == []
