"""Disk of a run by arithmetic, against sizes that are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.models.builtin import builtin_folder
from rlhf_ray.planning.shape import num_weights
from rlhf_ray.planning.storage import disk
from rlhf_ray.planning.storage.disk import check_disk, disk_lines, disk_need
from rlhf_ray.stages.stage import describe_training
from tests.unit.planning.models import QWEN_30B_MOE, QWEN_72B

GB = 1000**3
BIG = [
    "recipe=gpu_70b",
    "training.num_ranks=64",
    "num_steps=100",
    "checkpoint.every_steps=10",
    # Not every change below has a reference with ranks of its own.
    "reference.prompts_at_once=0",
]


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN_72B))
    return str(folder)


@pytest.fixture
def free(monkeypatch):
    """Sets the free bytes of the disk."""
    return lambda number: monkeypatch.setattr(disk, "free_bytes", lambda _: number)


def config_of(model: str, *changes: str):
    return load_config([*BIG, f"model.path={model}", f"output_dir={model}/output", *changes])


def test_a_large_model(model):
    need = disk_need(config_of(model))
    assert need is not None
    (learner, *others) = need.shares
    assert learner.bytes == pytest.approx(72.7e9 * 12, rel=0.01)
    assert learner.per_rank == pytest.approx(13.6 * GB, rel=0.01)
    assert need.model == pytest.approx(145 * GB, rel=0.01)
    assert need.kept == 3, "two are kept while the third is written"
    assert [share.name for share in others] == []


@pytest.mark.parametrize(
    ("changes", "factor", "note"),
    [
        (["training.ema_decay=0.9"], 16, ""),
        (["training.freeze_layers=4"], 12, " less what is frozen"),
    ],
)
def test_the_trained_part_decides(model, changes, factor, note):
    need = disk_need(config_of(model, *changes))
    assert need is not None
    weights = num_weights(model)
    assert weights is not None
    assert need.shares[0].bytes == factor * weights
    assert need.shares[0].note == note


@pytest.mark.parametrize(
    ("changes", "of_layer"),
    [
        # Queries and outputs are 8192 wide, keys and values 1024, the hidden layer 29568.
        ([], 2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 29568)),
        (["training.lora.target_modules=[q_proj,self_attn.v_proj]"], 2 * 8192 + 8192 + 1024),
    ],
)
def test_a_checkpoint_of_an_adapter_has_nothing_of_its_base(model, free, changes, of_layer):
    config = config_of(model, "training.lora.r=16", *changes)
    need = disk_need(config)
    assert need is not None
    assert need.shares[0].bytes == 12 * 16 * 80 * of_layer
    assert need.shares[0].note == ""
    # As many checkpoints are known to be written as of a run that trains all.
    assert need.is_certain
    free(need.model + 3 * need.checkpoint - 1)
    with pytest.raises(RequestError, match="the run writes"):
        check_disk(config)
    free(need.model + 3 * need.checkpoint)
    check_disk(config)


def test_an_adapter_of_unknown_size_is_said(tmp_path):
    model = str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN_30B_MOE))
    need = disk_need(config_of(model, "training.lora.r=16"))
    assert need is not None
    assert need.shares[0].bytes == 0
    assert str(need.shares[0]).endswith(" on each of 64 ranks and an adapter of unknown size")


def test_every_role_with_a_folder_is_counted(model):
    changes = ("algorithm=ppo", "critic.num_ranks=8", "critic.zero_stage=3")
    need = disk_need(config_of(model, *changes, "algorithm.kl_coefficient=0"))
    assert need is not None
    assert [share.name for share in need.shares] == ["learner", "critic"]
    assert need.shares[1].per_rank == pytest.approx(72.7e9 * 12 / 8, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        (["checkpoint.keep_last=5"], 6),
        (["num_steps=10"], 1),
        (["num_steps=9"], 0),
        (["checkpoint.every_steps=0"], 0),
    ],
)
def test_checkpoints_at_a_time(model, changes, kept):
    need = disk_need(config_of(model, *changes))
    assert need is not None
    assert need.kept == kept


def test_groups_that_wait_are_said_and_refuse_no_run(model, free):
    changes = [
        *["max_staleness=2", "prompts_per_step=100", "samples_per_prompt=8"],
        *["rollout_selection.dynamic=true", "rollout_selection.max_replacements_per_step=28"],
        *["data.max_prompt_tokens=24", "generation.max_response_tokens=1000"],
        "algorithm.num_mini_batches=1",
    ]
    config = config_of(model, *changes)
    need = disk_need(config)
    assert need is not None
    # Two batches of 128 groups; a token has 18 bytes.
    assert need.waiting == 2 * 128 * 8 * 1024 * 18
    lines = disk_lines(config)
    assert "Groups that wait in it for a later step: 37.7 MB at most, if all 256 are complete" in (
        "\n".join(lines)
    )
    assert need.most == (need.checkpoint + need.waiting) * 3 + need.model
    free(need.least)
    check_disk(config)
    replayed = disk_need(config_of(model, *changes, "rollout_selection.replay_groups_per_step=1"))
    assert replayed is not None
    assert replayed.waiting == need.waiting + 64 * 8 * 1024 * 18
    supports = disk_need(config_of(model, *changes, "generation.top_k=4"))
    assert supports is not None
    assert supports.waiting == need.waiting // 18 * (18 + 4 * (1 + 4 + 16))
    without = disk_need(config_of(model, "max_staleness=0"))
    assert without is not None
    assert without.waiting == 0


def test_the_plan_says_the_sizes_and_what_is_free(model):
    text = describe_training(config_of(model))
    assert "Checkpoint: 872 GB (learner 13.6 GB on each of 64 ranks); at most 3 at a time" in text
    assert "Model: 145 GB" in text
    (last,) = [line for line in text.splitlines() if line.startswith("Disk: ")]
    assert "2.76 TB at most, and there is the disk of " in last
    assert "mounted at" in last


def test_the_plan_says_what_a_copy_in_host_memory_takes(model):
    text = "\n".join(disk_lines(config_of(model, "checkpoint.background=true")))
    assert "Host memory for a copy of it, while it is written: learner 13.6 GB on each of" in text
    assert "Host memory" not in "\n".join(disk_lines(config_of(model)))


def test_a_full_disk_is_said_in_the_plan_and_refuses_the_run(model, free):
    config = config_of(model)
    free(1000 * GB)
    assert disk_lines(config)[-1].endswith(", WHICH IS LESS")
    with pytest.raises(RequestError, match=r"the run writes 2\.76 TB \(3 checkpoints of 872 GB"):
        check_disk(config)
    free(3000 * GB)
    assert "LESS" not in disk_lines(config)[-1]
    check_disk(config)


def test_what_the_run_replaces_counts_as_free(model, free):
    config = config_of(model)
    folder = Path(config.output_dir) / "checkpoints" / "step_000010"
    folder.mkdir(parents=True)
    with (folder / "weights").open("wb") as file:
        file.truncate(3000 * GB)
    free(0)
    check_disk(config)


def test_a_model_that_is_not_here_is_not_compared(free):
    free(0)
    config = load_config([*BIG, "model.path=Qwen/Qwen2.5-72B"])
    assert disk_lines(config) == [
        "Disk: not compared, because model.path=Qwen/Qwen2.5-72B is not on this machine; for its "
        "sizes name a folder with its config.json, which is enough"
    ]
    check_disk(config)


def test_a_model_of_another_family_is_counted_by_its_files(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "other", "dtype": "bfloat16"}')
    assert num_weights(str(tmp_path)) is None
    save_file({"w": torch.zeros(5000, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert num_weights(str(tmp_path)) == pytest.approx(5000, rel=0.02)


def test_stages_that_learn_from_examples_have_a_disk_too(model, free):
    config = load_config(
        [
            *("stage=sft", f"model.path={model}", f"output_dir={model}/output"),
            *("examples.path=rlhf_ray.data.builtin:arithmetic", "checkpoint.every_steps=2"),
        ]
    )
    free(1)
    need = disk_need(config)
    assert need is not None
    assert need.kept == 3
    assert not need.is_certain
    with pytest.raises(RequestError, match=r"the run writes .* \(a model of "):
        check_disk(config)


def test_a_built_in_model_is_found_where_runs_keep_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(["recipe=demo", f"output_dir={tmp_path}/output", "seed=5"])
    (line,) = disk_lines(config)
    assert line == (
        "Disk: not compared, because model.path=builtin:arithmetic is made by the first run that "
        "needs it"
    )
    folder = builtin_folder("builtin:arithmetic", seed=5)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN_72B))
    need = disk_need(config)
    assert need is not None
    assert need.model == pytest.approx(72.7e9 * 4, rel=0.01)
    assert disk_need(load_config(["recipe=demo", "seed=6"])) is None
    assert disk_need(load_config(["recipe=demo", "model.path=builtin:arithmetik"])) is None
