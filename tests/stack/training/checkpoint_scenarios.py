"""Scenarios of checkpoint files: every kind that is written is read, and none runs code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_ray.config.groups.lora import LoraConfig
from tests.stack.training.rank import Rank
from tests.stack.training.ranking_scenarios import MAX_TOKENS, own_rankings
from tests.stack.training.scenarios import resume
from tests.unit.hostile_files import write_hostile_file

LORA = LoraConfig(r=4, alpha=8)


def poisoned_learner(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        here.update(learner)
        return _refusals(learner, here.folder / f"poisoned_{'_'.join(map(str, settings.values()))}")


def poisoned_critic(here: Rank) -> dict[str, Any]:
    with here.critic(zero_stage=1) as critic:
        critic.update([here.experience])
        return _refusals(critic, here.folder / "poisoned_critic")


def poisoned_reward_model(here: Rank) -> dict[str, Any]:
    with here.reward_trainer(max_tokens_per_micro_batch=MAX_TOKENS) as trainer:
        trainer.update([own_rankings(here, "padded")])
        return _refusals(trainer, here.folder / "poisoned_reward_model")


def poisoned_reference(here: Rank) -> dict[str, Any]:
    with here.reference(decay=0.5) as reference:
        return _refusals(reference, here.folder / "poisoned_reference")


def _refusals(role: Any, folder: Path) -> dict[str, Any]:
    """The messages of a role whose checkpoint has one file that runs code, file by file."""
    role.save_checkpoint(folder)
    ran = folder / "ran"
    errors = {}
    for path in _tensor_files(folder):
        whole = path.with_name("whole")
        shutil.move(path, whole)
        write_hostile_file(path, f"touch {ran}")
        try:
            role.load_checkpoint(folder)
        except ValueError as error:
            errors[path.name] = f"{type(error).__name__}: {error}"
        os.replace(whole, path)
    role.load_checkpoint(folder)
    files = [path.name for path in _tensor_files(folder)]
    return {"errors": errors, "files": files, "ran": ran.exists()}


def _tensor_files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.rglob("*.pt")))


RESTORED: dict[int, dict[str, Callable[[Rank], Any]]] = {
    1: {
        **{
            f"learner_zero_{stage}_{dtype}": partial(
                poisoned_learner, zero_stage=stage, dtype=dtype, ema_decay=0.9
            )
            for stage, dtype in (
                (0, "float32"),
                (0, "bfloat16"),
                (1, "float32"),
                (2, "bfloat16"),
                (3, "float32"),
            )
        },
        "critic": poisoned_critic,
        "reward_model": poisoned_reward_model,
        "reference": poisoned_reference,
    },
    2: {
        **{
            f"bfloat16_zero_{stage}": partial(
                resume, name=f"restored_bfloat16_{stage}", dtype="bfloat16", zero_stage=stage
            )
            for stage in (1, 2, 3)
        },
        **{
            f"offload_zero_{stage}": partial(
                resume, name=f"restored_offload_{stage}", offload_optimizer=True, zero_stage=stage
            )
            for stage in (1, 2, 3)
        },
        "offload_bfloat16_zero_1": partial(
            resume,
            name="restored_offload_bfloat16",
            offload_optimizer=True,
            dtype="bfloat16",
            zero_stage=1,
        ),
        "offload_all_zero_3": partial(
            resume,
            name="restored_offload_all",
            offload_optimizer=True,
            offload_parameters=True,
            zero_stage=3,
        ),
        **{
            f"lora_zero_{stage}": partial(
                resume, name=f"restored_lora_{stage}", lora=LORA, zero_stage=stage
            )
            for stage in (0, 2, 3)
        },
        "frozen_zero_2": partial(
            resume, name="restored_frozen", freeze_layers=1, ema_decay=0.9, zero_stage=2
        ),
    },
}
