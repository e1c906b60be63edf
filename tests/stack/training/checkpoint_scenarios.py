"""Scenarios of checkpoint files: every kind that is written is read, and none runs code.

Releases before wrote DeepSpeed's own files. The scenarios of their checkpoints write such folders.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.checkpoint_files.background import BackgroundWrite
from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.training.roles.reference import Reference
from rlhf_ray.training.weights.ema_policy import EmaEngine
from tests.stack.training.rank import Rank, weights_of
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


def poisoned_earlier_learner(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        here.update(learner)
        folder = here.folder / f"poisoned_earlier_{'_'.join(map(str, settings.values()))}"
        save_earlier(here, learner, folder)
        return _refusals(learner, folder)


def poisoned_earlier_reference(here: Rank) -> dict[str, Any]:
    with here.reference(decay=0.5) as reference:
        folder = here.folder / "poisoned_earlier_reference"
        save_earlier(here, reference, folder)
        return _refusals(reference, folder)


def save_earlier(here: Rank, role: Any, folder: Path) -> None:
    """Write the checkpoint of a role as releases before did."""
    role.save_checkpoint(folder)
    facts = json.loads((folder / "role.json").read_text())
    torch.distributed.barrier()
    if here.rank == 0:
        for path in [*folder.glob("*.safetensors"), *folder.glob("*_rank_*.json")]:
            path.unlink()
        del facts["format"], facts["sequence_parallel_size"]
        (folder / "role.json").write_text(json.dumps(facts))
    torch.distributed.barrier()
    if isinstance(role, Reference):
        _write(role._weights.state_dict(), folder, "moving", here.rank)
        return
    engine = role._engine
    engine._engine.save_checkpoint(str(folder), tag="engine", save_latest=False)
    if isinstance(engine, EmaEngine):
        _write(engine.ema._parts, folder, "average", here.rank)
    torch.distributed.barrier()


def _write(parts: dict[str, Tensor], folder: Path, prefix: str, rank: int) -> None:
    copies = {name: part.clone() for name, part in parts.items()}
    torch.save(copies, folder / f"{prefix}_rank_{rank:05d}.pt")


def resume_earlier(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Three steps with a checkpoint as of a release before, and the last two again from it."""
    folder = here.folder / f"earlier_{name}_{here.world_size}"
    with here.learner(**settings) as learner:
        here.update(learner)
        save_earlier(here, learner, folder)
        straight = [here.update(learner) for _ in range(2)]
        straight_weights = weights_of(learner)
    with here.learner(**settings) as learner:
        learner.load_checkpoint(folder)
        result = {
            "straight": straight,
            "resumed": [here.update(learner) for _ in range(2)],
            "straight_weights": straight_weights,
            "resumed_weights": weights_of(learner),
        }
    with here.learner(**settings | {"zero_stage": 1}) as learner:
        try:
            learner.load_checkpoint(folder)
        except ValueError as error:
            result["other_stage"] = str(error)
    return result


def resume_from_snapshot(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Three steps; a thread writes the state after the first while the others are taken."""
    folder = here.folder / f"snapshot_{name}_{here.world_size}"
    with here.learner(**settings) as learner:
        here.update(learner)
        write, may_write = learner.snapshot(), threading.Event()

        def write_later() -> str:
            assert may_write.wait(60.0)
            write(folder)
            return "written"

        writing = BackgroundWrite(write_later)
        straight = [here.update(learner)]
        may_write.set()
        straight.append(here.update(learner))
        assert writing.result(wait_s=60.0) == "written"
        torch.distributed.barrier()
        straight_weights = weights_of(learner)
    with here.learner(**settings) as learner:
        learner.load_checkpoint(folder)
        return {
            "straight": straight,
            "resumed": [here.update(learner) for _ in range(2)],
            "straight_weights": straight_weights,
            "resumed_weights": weights_of(learner),
        }


def resume_from_memory(here: Rank, **settings: Any) -> dict[str, Any]:
    """Three steps; another rank goes on from what this one gave away after the first."""
    with here.learner(**settings) as learner:
        here.update(learner)
        # As it travels: arrays out of band, which arrive read-only.
        buffers: list[pickle.PickleBuffer] = []
        state = pickle.dumps(learner.take_state(), protocol=5, buffer_callback=buffers.append)
        kept = [bytes(buffer) for buffer in buffers]
        straight = [here.update(learner) for _ in range(2)]
        straight_weights = weights_of(learner)
    held = pickle.loads(state, buffers=kept)
    assert sum(map(len, kept)) >= held.num_bytes, "no values are in the pickle"
    with here.learner(**settings) as learner:
        learner.restore_state(held)
        return {
            "straight": straight,
            "resumed": [here.update(learner) for _ in range(2)],
            "straight_weights": straight_weights,
            "resumed_weights": weights_of(learner),
        }


def _refusals(role: Any, folder: Path) -> dict[str, Any]:
    """The messages of a role whose checkpoint has one file that runs code, file by file."""
    if not folder.exists():
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
    names = ("*.pt", "*.safetensors", "*_rank_*.json")
    return iter(sorted(path for name in names for path in folder.rglob(name)))


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
        **{
            f"earlier_learner_zero_{stage}_{dtype}": partial(
                poisoned_earlier_learner, zero_stage=stage, dtype=dtype, ema_decay=0.9
            )
            for stage, dtype in ((0, "float32"), (2, "bfloat16"), (3, "float32"))
        },
        "earlier_reference": poisoned_earlier_reference,
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
        **{
            f"snapshot_zero_{stage}_{dtype}": partial(
                resume_from_snapshot,
                name=f"{stage}_{dtype}",
                zero_stage=stage,
                dtype=dtype,
                ema_decay=0.9,
            )
            for stage, dtype in ((0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16"))
        },
        **{
            f"earlier_zero_{stage}": partial(
                resume_earlier, name=str(stage), zero_stage=stage, ema_decay=0.9
            )
            for stage in (0, 2, 3)
        },
        **{
            f"memory_zero_{stage}_{dtype}": partial(
                resume_from_memory, zero_stage=stage, dtype=dtype, ema_decay=0.9
            )
            for stage, dtype in ((0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16"))
        },
        "memory_lora_zero_2": partial(resume_from_memory, lora=LORA, zero_stage=2),
        "memory_offload_zero_3": partial(
            resume_from_memory, offload_optimizer=True, freeze_layers=1, zero_stage=3
        ),
        "frozen_zero_2": partial(
            resume, name="restored_frozen", freeze_layers=1, ema_decay=0.9, zero_stage=2
        ),
    },
}
