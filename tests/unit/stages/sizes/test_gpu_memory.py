"""GPU memory by arithmetic, against sizes that are known."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.stages.plan import run
from rlhf_ray.stages.sizes.gpu_memory import (
    check_gpu_memory,
    memory_lines,
    memory_needs,
)
from rlhf_ray.stages.sizes.model_size import local_model, model_size

# The published configurations of Qwen2.5 and of Qwen3-30B-A3B.
QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
QWEN_72B = QWEN_7B | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
}
QWEN_30B_MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
GIB = 1024**3
COLOCATED = [
    *("recipe=gpu_7b", "placement=colocated", "max_staleness=0", "model.path=Qwen/Qwen2.5-7B"),
    *("placement.gpu_memory_gib=79", "training.num_ranks=4"),
]


@pytest.mark.parametrize(
    ("model", "billions"), [(QWEN_7B, 7.6), (QWEN_72B, 72.7), (QWEN_30B_MOE, 30.5)]
)
def test_weights_of_published_models(model, billions):
    size = model_size(model)
    assert size is not None
    assert size.weights / 1e9 == pytest.approx(billions, abs=0.06)


def test_a_lower_bound_where_the_file_says_less():
    said = model_size(QWEN_7B)
    unsaid = model_size({k: v for k, v in QWEN_7B.items() if k != "tie_word_embeddings"})
    assert said is not None
    assert unsaid is not None
    assert said.weights - unsaid.weights == 152064 * 3584
    # 28 layers of 4 heads of 128 numbers, keys and values.
    assert said.cache_values == 2 * 28 * 4 * 128


@pytest.mark.parametrize("model", [{"model_type": "mamba"}, {"model_type": "llama"}, {}])
def test_other_models_are_not_counted(model):
    assert model_size(model) is None


def needs_of(*overrides: str, model: dict = QWEN_7B) -> dict[str, dict[str, float]]:
    size = model_size(model)
    assert size is not None
    needs = memory_needs(load_config([*COLOCATED, *overrides]), size)
    return {need.what: {n: b / GIB for n, b in need.parts.items()} for need in needs}


def test_phases_of_a_colocated_run():
    needs = needs_of()
    weights = 7.615e9 / GIB
    assert needs.keys() == {
        "engine, generating",
        "learner, training",
        "learner and engine, publishing",
    }
    assert needs["learner, training"] == pytest.approx(
        {
            "weights": 2 * weights / 4,
            "gradients": 2 * weights / 4,
            "Adam's moments": 8 * weights / 4,
            "float32 weights": 4 * weights / 4,
        },
        rel=1e-3,
    )
    assert needs["learner and engine, publishing"] == pytest.approx(
        {
            "learner's weights": 2 * weights / 4,
            "engine's weights": 2 * weights,
            "two buckets": 0.25,
        },
        rel=1e-3,
    )


def test_an_ema_stays_for_a_publish_with_the_weights_that_it_averages():
    publishing = needs_of("training.ema_decay=0.99")["learner and engine, publishing"]
    assert publishing["EMA"] == publishing["float32 weights"] == pytest.approx(7.09, abs=0.01)


@pytest.mark.parametrize(
    ("override", "role", "part", "factor"),
    [
        ("training.offload_optimizer=true", "learner, training", "Adam's moments", 0.0),
        ("training.zero_stage=2", "learner, training", "weights", 4.0),
        ("training.zero_stage=2", "learner, training", "gradients", 1.0),
        ("generation.dtype=float32", "engine, generating", "weights", 2.0),
    ],
)
def test_settings_change_the_need(override, role, part, factor):
    before, after = needs_of()[role], needs_of(override)[role]
    assert after.get(part, 0.0) == pytest.approx(factor * before[part])


def test_a_model_that_fits_is_described():
    config = load_config(COLOCATED)
    check_gpu_memory(config, QWEN_7B)
    lines = memory_lines(config, QWEN_7B)
    assert len(lines) == 3
    assert "engine, generating: 14.3 of 67.1 GiB, and activations" in lines[0]


def test_a_model_that_cannot_fit_is_refused_in_every_phase():
    config = load_config(COLOCATED)
    with pytest.raises(RequestError) as caught:
        check_gpu_memory(config, QWEN_72B)
    message = str(caught.value)
    assert "72.7 billion weights" in message
    assert "placement.gpu_memory_gib=79" in message
    assert "engine, generating: 136" in message
    assert "raise generation.tensor_parallel_size" in message
    assert "learner, training: 270" in message
    assert "training.num_ranks" in message
    assert "publishing: 169" in message


def test_a_plan_refuses_a_model_of_this_machine(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_72B), encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1", "answer": "2"}\n', encoding="utf-8")
    local = [f"model.path={tmp_path}", f"output_dir={tmp_path}/out", f"data.path={rows}"]
    columns = ["data.prompt_column=question", "data.answer_column=answer"]
    config = load_config([*COLOCATED, *local, *columns, "stage=plan"])
    with pytest.raises(RequestError, match="do not fit"):
        run(config)
    assert "GPU memory of learner, training: 270" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "model", "line"),
    [
        (["recipe=demo"], QWEN_72B, None),
        ([*COLOCATED, "placement.gpu_memory_gib=null"], QWEN_72B, "gpu_memory_gib=null"),
        (COLOCATED, None, "is not on this machine; for its sizes"),
        (COLOCATED, {"model_type": "mamba"}, "another family"),
    ],
)
def test_what_is_not_compared_is_said_and_not_refused(overrides, model, line):
    config = load_config(overrides)
    check_gpu_memory(config, model)
    lines = memory_lines(config, model)
    assert len(lines) == (line is not None)
    assert line is None or line in lines[0]


def test_a_folder_without_a_readable_file_is_not_known(tmp_path):
    assert local_model(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert local_model(str(tmp_path)) is None


def test_slices_divide_what_zero_leaves_whole():
    engine = ("generation.num_engines=1", "generation.tensor_parallel_size=4")
    base = (*engine, "training.tensor_parallel_size=4")
    whole = needs_of(*engine, "training.zero_stage=2")["learner, training"]
    sliced = needs_of(*base, "training.zero_stage=2")["learner, training"]
    assert sliced["weights"] == pytest.approx(whole["weights"] / 4)
    assert sliced["Adam's moments"] == whole["Adam's moments"]
    assert needs_of(*base, "training.zero_stage=3")["learner, training"] == pytest.approx(sliced)
