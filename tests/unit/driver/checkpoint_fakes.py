"""Ranks that write checkpoint files as `training` does, and runs over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.checkpoint_files.facts import SLICES, CheckpointFacts, RoleLayout, write_facts
from rlhf_ray.checkpoint_files.manifest import seal_share
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.checkpoints import Checkpoints, StepCheckpoints
from rlhf_ray.driver.resume_changes import RunSettings
from rlhf_ray.driver.resume_choice import ResumedRun
from rlhf_ray.testing.fake_roles import FakeLearner
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import done

LAYOUT = RoleLayout(num_ranks=2, zero_stage=2, dtype="float32")
CONFIGURATION = {
    "seed": 0,
    "training.learning_rate": 1e-6,
    "algorithm.kl_coefficient": 0.1,
    "reward.functions": [{"path": "exact_match", "weight": 1.0}],
    "deadlines.update_s": 10.0,
}
PARTS = ("adaptive", "pipeline")
STATE = {"adaptive": {"kl": 0.1}, "pipeline": {"position": 3}}


class WritingRanks(FakeLearner):
    """Two ranks at ZeRO-2, whose shards are texts.

    Args:
        fails_with: raised after the files are written.
        layout, format: as their facts say.
    """

    def __init__(
        self,
        fails_with: Exception | None = None,
        *,
        layout: RoleLayout = LAYOUT,
        format: str = SLICES,
    ) -> None:
        self._layout = layout
        self._format = format
        self.loaded: list[Path] = []
        self.sealed: list[bool] = []
        self._fails_with = fails_with

    def save_checkpoint(self, folder: Path) -> list[Call]:
        folder.mkdir(parents=True)
        facts = CheckpointFacts(
            world_size=self._layout.num_ranks,
            zero_stage=self._layout.zero_stage,
            dtype=self._layout.dtype,
            optimizer_step=1,
            format=self._format,
        )
        write_facts(folder, facts)
        for rank in range(2):
            (folder / f"random_rank_{rank:05d}.pt").write_text(f"random {rank}")
            (folder / f"state_rank_{rank:05d}.json").write_text(f"index of rank {rank}")
            shard = folder / f"state_rank_{rank:05d}_0000.safetensors"
            shard.write_text(f"moments of rank {rank}")
        if self._fails_with is not None:
            raise self._fails_with
        return [done("learner", rank) for rank in range(2)]

    def load_checkpoint(self, folder: Path) -> list[Call]:
        self.loaded.append(folder)
        return [done("learner", rank) for rank in range(2)]

    def seal_checkpoint(self, folder: Path, *, sync: bool) -> list[Call]:
        self.sealed.append(sync)
        return [
            done("learner", rank, seal_share(folder, rank=rank, world_size=2, sync=sync))
            for rank in range(2)
        ]


def run_settings(
    *, identity: dict[str, Any] | None = None, accepted: Sequence[str] = (), **changed: Any
) -> RunSettings:
    """Settings of a run; `changed` keys have `__` for the dot."""
    values = {key.replace("__", "."): value for key, value in changed.items()}
    return RunSettings(
        identity=identity or {"seed": 0},
        configuration=CONFIGURATION | values,
        defaults=dict.fromkeys(CONFIGURATION | values),
        code={},
        models={},
        accepted=tuple(accepted),
    )


def expected(settings: RunSettings | None = None, layout: RoleLayout = LAYOUT) -> ResumedRun:
    return ResumedRun(
        settings=settings or run_settings(),
        parts=PARTS,
        layouts={"learner": layout},
        length=None,
    )


def step_checkpoints(
    output: Path, ranks: WritingRanks | None = None, *, keep_last: int = 9
) -> StepCheckpoints:
    settings = run_settings()
    return StepCheckpoints(
        Checkpoints(output, keep_last=keep_last),
        roles={"learner": ranks or WritingRanks()},
        waiter=InProcessWaiter(),
        every_steps=1,
        timeout_s=1.0,
        identity=settings.identity,
        settings=settings.in_checkpoint(),
    )


def written(output: Path, *steps: int, ranks: WritingRanks | None = None) -> list[Path]:
    """The folders of new checkpoints after these steps."""
    checkpoints = step_checkpoints(output, ranks)
    for step in steps:
        checkpoints.save(step, STATE)
    return [output / "checkpoints" / f"step_{step:06d}" for step in steps]


def without_manifest(folder: Path) -> Path:
    """Make a checkpoint one of an earlier release."""
    (folder / "manifest.json").unlink()
    (folder / "COMMITTED").write_text("")
    state = json.loads((folder / "run.json").read_text())
    del state["configuration"], state["code"]
    (folder / "run.json").write_text(json.dumps(state))
    return folder


def disk_is_full() -> RunFailed:
    return RunFailed("learner_1 failed: [enforce fail] unexpected pos 4777344 vs 4777236")
