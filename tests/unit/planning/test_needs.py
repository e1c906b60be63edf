"""Memory by role and phase, against sizes that are known; refusals, with the nearest change."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.runtime import DEVICE_NAMES
from rlhf_ray.config.load import load_config
from rlhf_ray.planning.devices import DEVICES, GIB
from rlhf_ray.planning.gpu_memory import check_gpu_memory, does_fit, gpu_memory, memory_lines
from rlhf_ray.planning.needs import phase_needs
from rlhf_ray.planning.shape import local_model, model_shape
from rlhf_ray.stages.plan import run
from tests.unit.planning.models import DEEPSEEK_V3, QWEN_7B, QWEN_30B_MOE, QWEN_72B

COLOCATED = [
    *("recipe=gpu_7b", "placement=colocated", "max_staleness=0", "model.path=Qwen/Qwen2.5-7B"),
    *("placement.gpu_memory_gib=79", "training.num_ranks=4"),
]


@pytest.mark.parametrize(
    ("model", "billions", "active"),
    [
        # The weights of a token: without the embedding, where the head is another matrix.
        (QWEN_7B, 7.6, 7.07),
        (QWEN_72B, 72.7, 71.5),
        (QWEN_30B_MOE, 30.5, 3.04),
        (DEEPSEEK_V3, 671.0, 36.6),
    ],
)
def test_weights_of_published_models(model, billions, active):
    shape = model_shape(model)
    assert shape is not None
    assert shape.weights / 1e9 == pytest.approx(billions, abs=0.06)
    assert shape.active_weights / 1e9 == pytest.approx(active, rel=0.005)


def test_a_lower_bound_where_the_file_says_less():
    said = model_shape(QWEN_7B)
    unsaid = model_shape({k: v for k, v in QWEN_7B.items() if k != "tie_word_embeddings"})
    assert said is not None
    assert unsaid is not None
    assert said.weights - unsaid.weights == 152064 * 3584
    # 28 layers of 4 heads of 128 numbers, keys and values.
    assert said.cache_values == 2 * 28 * 4 * 128


def test_latent_keys_are_one_vector_for_all_heads():
    shape = model_shape(DEEPSEEK_V3)
    assert shape is not None
    assert shape.cache_values == 61 * (512 + 64)


@pytest.mark.parametrize("model", [{"model_type": "mamba"}, {"model_type": "llama"}, {}])
def test_other_models_are_not_counted(model):
    assert model_shape(model) is None


def needs_of(*overrides: str, model: dict = QWEN_7B, host: bool = False):
    shape = model_shape(model)
    assert shape is not None
    needs = phase_needs(load_config([*COLOCATED, *overrides]), shape)
    return {
        (need.role, need.phase): {
            name: size / GIB for name, size in (need.host if host else need.device).items()
        }
        for need in needs
    }


UPDATE, PUBLISH = ("training", "update"), ("training", "publish")


def test_phases_of_a_colocated_run():
    needs = needs_of()
    weights = 7.615e9 / GIB
    assert {("generation", "generate"), ("generation", "sleep"), UPDATE, PUBLISH} <= needs.keys()
    kept = {"weights": 2, "gradients": 4, "Adam's moments": 8, "float32 weights": 4}
    update = needs[UPDATE]
    assert {name: update[name] for name in kept} == pytest.approx(
        {name: size * weights / 4 for name, size in kept.items()}, rel=1e-3
    )
    # A bucket of 500 million gradients in float32, and a billion gathered weights in bfloat16.
    assert update["buckets of gradients"] == pytest.approx(2e9 / GIB)
    assert update["gathered weights"] == pytest.approx(2 * 1.0899e9 / GIB, rel=1e-3)
    # The inputs of 28 layers, 16,384 tokens of 3,584 numbers.
    assert update["inputs of layers"] == pytest.approx(28 * 16384 * 3584 * 2 / GIB)
    publish = needs[PUBLISH]
    assert publish["learner's weights"] == pytest.approx(2 * weights / 4, rel=1e-3)
    assert publish["engine's weights"] == pytest.approx(2 * weights, rel=1e-3)
    assert publish["two buckets"] == 0.25
    # While the engine generates all states of the learner are in host memory: 18 bytes a weight.
    asleep = needs_of(host=True)["training", "sleep"]
    assert sum(asleep.values()) - asleep["process"] == pytest.approx(18 * weights / 4, rel=1e-3)


def test_an_ema_stays_for_a_publish_with_the_weights_that_it_averages():
    publishing = needs_of("training.ema_decay=0.99")[PUBLISH]
    assert publishing["EMA"] == publishing["float32 weights"] == pytest.approx(7.09, abs=0.01)


@pytest.mark.parametrize(
    ("override", "phase", "part", "factor"),
    [
        ("training.offload_optimizer=true", UPDATE, "Adam's moments", 0.0),
        ("training.offload_optimizer=true", UPDATE, "gradients", 0.0),
        ("training.zero_stage=2", UPDATE, "weights", 4.0),
        ("training.zero_stage=2", UPDATE, "gradients", 1.0),
        ("training.zero_stage=2", UPDATE, "gathered weights", 0.0),
        ("training.max_tokens_per_micro_batch=8192", UPDATE, "inputs of layers", 0.5),
        ("training.zero.gradient_dtype=bfloat16", UPDATE, "gradients", 0.5),
        ("generation.dtype=float32", ("generation", "generate"), "weights", 2.0),
    ],
)
def test_settings_change_the_need(override, phase, part, factor):
    before, after = needs_of()[phase], needs_of(override)[phase]
    assert after.get(part, 0.0) == pytest.approx(factor * before[part])


def test_layers_that_are_not_computed_again_keep_their_activations():
    update = needs_of("training.gradient_checkpointing=false")[UPDATE]
    # By hand: 16,384 tokens x 28 layers x (8 x 2 x 3,584 in norms + 2 x (4 x 3,584 + 1,024) in
    # attention + 2 x 4 x 18,944 in the MLP).
    assert update["activations"] == pytest.approx(16384 * 28 * (57344 + 30720 + 151552) / GIB)
    # Logits are more than the gradients of the widest tensors, which come after them.
    assert "logits" in update
    assert "gradients of activations" not in update


def test_the_chunks_of_the_head_are_those_of_training():
    from rlhf_ray.planning import activations
    from rlhf_ray.training.forward import head_logprobs, token_logprobs

    assert head_logprobs._CHUNK_ELEMENTS == activations.CHUNK
    assert head_logprobs._KEPT_ELEMENTS == activations.KEPT
    assert token_logprobs._CHUNK_ELEMENTS == activations.FLOAT32_CHUNK


@pytest.mark.parametrize(("kernel", "mib"), [("chunked", 2392), ("liger", 192)])
def test_the_head_takes_what_was_measured_on_a_gpu(kernel, mib):
    """Forward and backward over 8,192 rows in bfloat16 on an H200; see docs/gpu.md."""
    from rlhf_ray.config.groups.training import RoleConfig
    from rlhf_ray.planning.activations import head_memory

    shape = model_shape(QWEN_7B | {"hidden_size": 1024, "vocab_size": 49152})
    assert shape is not None
    role = RoleConfig(max_tokens_per_micro_batch=8192)
    parts = head_memory(role, shape, kernel=kernel, on_gpu=True, with_gradient=True)
    assert sum(parts.values()) / 2**20 == pytest.approx(mib, rel=0.05)


def test_a_model_that_fits_is_described():
    config = load_config(COLOCATED)
    check_gpu_memory(config, QWEN_7B)
    lines = memory_lines(config, QWEN_7B)
    (generate,) = [line for line in lines if "generate" in line]
    assert "of 67.1" in generate
    (cache,) = [line for line in lines if line.startswith("cache of a GPU")]
    # 28 layers x 2 x 4 heads x 128 x 2 bytes.
    assert "56 KiB a token" in cache


def test_a_model_that_cannot_fit_is_refused_with_what_would():
    config = load_config(COLOCATED)
    with pytest.raises(RequestError) as caught:
        check_gpu_memory(config, QWEN_72B)
    message = str(caught.value)
    assert "72.7 billion weights" in message
    assert "placement.gpu_memory_gib=79" in message
    assert "generation, generate: " in message
    assert "training, update: " in message
    assert "training, publish: " in message
    told = message.splitlines()[-1]
    assert told.startswith("plan.suggest: it fits with ")
    # The advice is true, and it is a configuration.
    settings = told.removeprefix("plan.suggest: it fits with ").partition(", which")[0].split()
    check_gpu_memory(load_config([*COLOCATED, *settings]), QWEN_72B)
    assert "training.num_ranks=4" not in settings
    with pytest.raises(RequestError) as caught:
        check_gpu_memory(load_config([*COLOCATED, "plan.suggest=false"]), QWEN_72B)
    assert "plan.suggest" not in str(caught.value)


APART = ["recipe=gpu_7b", "model.path=Qwen/Qwen2.5-7B", "placement.gpu_memory_gib=79"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        # Nothing is asked for that is not needed: one change each.
        (["training.gradient_checkpointing=false"], "training.gradient_checkpointing=true"),
        (["training.zero_stage=1", "placement.gpu_memory_gib=60"], "training.zero_stage="),
        (["generation.gpu_memory_utilization=0.15"], "generation.gpu_memory_utilization=0.85"),
    ],
)
def test_the_nearest_change_is_the_one_that_was_taken_away(change, told):
    config = load_config([*APART, *change])
    with pytest.raises(RequestError) as caught:
        check_gpu_memory(config, QWEN_7B)
    last = str(caught.value).splitlines()[-1]
    assert told in last
    assert last.count("=") == 1, last


def test_a_gpu_that_is_too_small_for_anything_has_no_change():
    config = load_config([*APART, "placement.gpu_memory_gib=1"])
    with pytest.raises(RequestError, match="no change of the settings of"):
        check_gpu_memory(config, QWEN_7B)


@pytest.mark.parametrize(
    ("recipe", "model", "device"),
    [("gpu_7b", QWEN_7B, "h100-80g"), ("gpu_70b", QWEN_72B, "h100-80g")],
)
def test_the_recipes_fit_the_cards_that_they_name(recipe, model, device):
    config = load_config([f"recipe={recipe}"])
    assert config.plan.device == device
    memory, shape = gpu_memory(config), model_shape(model)
    assert memory is not None
    assert shape is not None
    needs = phase_needs(config, shape)
    # With the estimates as they are, and not a tenth lower.
    assert [need for need in needs if need.total > need.share * memory] == []
    assert all(does_fit(need, memory) for need in needs)
    check_gpu_memory(config, model)


def test_the_names_of_devices_are_the_rows_of_the_table():
    assert set(DEVICE_NAMES) == DEVICES.keys()
    config = load_config(["recipe=gpu_7b", "placement.gpu_memory_gib=null"])
    assert gpu_memory(config) == DEVICES["h100-80g"].memory_gib * GIB


def test_a_plan_refuses_a_model_of_this_machine(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_72B), encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1", "answer": "2"}\n', encoding="utf-8")
    local = [f"model.path={tmp_path}", f"output_dir={tmp_path}/out", f"data.path={rows}"]
    columns = ["data.prompt_column=question", "data.answer_column=answer"]
    config = load_config([*COLOCATED, *local, *columns, "stage=plan"])
    with pytest.raises(RequestError, match="do not fit"):
        run(config)
    assert "training    update" in capsys.readouterr().out


def test_a_stage_that_learns_from_examples_is_compared_too(tmp_path):
    from rlhf_ray.stages.table import load_stage

    (tmp_path / "config.json").write_text(json.dumps(QWEN_72B), encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1", "answer": "2"}\n', encoding="utf-8")
    told = ["stage=sft", f"model.path={tmp_path}", f"examples.path={rows}", "training=gpu"]
    config = load_config([*told, "plan.device=h100-80g", f"output_dir={tmp_path}/out"])
    with pytest.raises(RequestError, match="training, update"):
        load_stage("sft").check(config)


@pytest.mark.parametrize(
    ("overrides", "model", "line"),
    [
        (["recipe=demo"], None, None),
        (
            [*COLOCATED, "placement.gpu_memory_gib=null", "plan.device=null"],
            QWEN_72B,
            "gpu_memory_gib=null and plan.device=null",
        ),
        (COLOCATED, None, "is not on this machine; for its sizes"),
        (COLOCATED, {"model_type": "mamba"}, "another family"),
    ],
)
def test_what_is_not_compared_is_said_and_not_refused(overrides, model, line):
    config = load_config(overrides)
    check_gpu_memory(config, model)
    lines = memory_lines(config, model)
    assert lines == [] if line is None else line in lines[0]


def test_a_reference_with_another_model_has_its_sizes(tmp_path):
    kl = ["recipe=gpu_7b", "algorithm.kl_coefficient=0.1", "plan.suggest=false"]
    (tmp_path / "config.json").write_text(json.dumps(QWEN_72B), encoding="utf-8")
    own = f"reference.path={tmp_path}"
    check_gpu_memory(load_config(kl), QWEN_7B)
    with pytest.raises(RequestError, match="reference, score: ") as caught:
        check_gpu_memory(load_config([*kl, own]), QWEN_7B)
    assert "training" not in str(caught.value).partition("\n")[2]


def test_a_run_on_cpus_has_its_memory_on_the_host():
    lines = memory_lines(load_config(["recipe=demo"]), QWEN_7B)
    (update,) = [line for line in lines if line.startswith("training") and "update" in line]
    # 16 bytes a weight in float32, without sharding: 113 GiB.
    assert "Adam's moments 56.7, weights 28.4, gradients 28.4" in update
    assert lines[-1].startswith("host memory: ")
    check_gpu_memory(load_config(["recipe=demo"]), QWEN_7B)


def test_a_folder_without_a_readable_file_is_not_known(tmp_path):
    assert local_model(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert local_model(str(tmp_path)) is None


def test_slices_divide_what_zero_leaves_whole():
    engine = ("generation.num_engines=1", "generation.tensor_parallel_size=4")
    base = (*engine, "training.tensor_parallel_size=4")
    whole = needs_of(*engine, "training.zero_stage=2")[UPDATE]
    sliced = needs_of(*base, "training.zero_stage=2")[UPDATE]
    assert sliced["weights"] == pytest.approx(whole["weights"] / 4)
    assert sliced["Adam's moments"] == whole["Adam's moments"]
