"""The demands of a run on the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.checkpoint_files.facts import RoleLayout
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import values_of
from rlhf_ray.driver.resume_changes import RunSettings
from rlhf_ray.driver.resume_choice import Resume, ResumedRun, checkpoint_to_resume

# Keys of the driver's state that a stage reads.
RL_PARTS = ("adaptive", "pipeline")
FIT_PARTS = ("improvement", "steps")
# Keys that say where and whether, and not what, a run is.
_LEFT_OUT = ("output_dir", "resume", "dry_run", "checkpoint.accept_changes")


def run_settings(
    config: Config, identity: dict[str, Any], *, code: Mapping[str, str]
) -> RunSettings:
    """The settings of a run, for its checkpoints.

    Args:
        code: hashes of the files of reward functions, by path.
    """
    return RunSettings(
        identity=identity,
        configuration=_without(values_of(config)),
        defaults=_without(values_of(Config())),
        code=code,
        accepted=tuple(config.checkpoint.accept_changes),
    )


def resume_of_rl(config: Config, settings: RunSettings) -> Resume | None:
    """The checkpoint that a run of reinforcement learning goes on from.

    Raises:
        RequestError: see `checkpoint_to_resume`.
    """
    roles: dict[str, RoleConfig] = {"learner": config.training}
    if config.needs_critic:
        roles["critic"] = config.critic
    if config.starts_reference and config.algorithm.reference_every > 0:
        roles["reference"] = config.reference
    expected = ResumedRun(settings=settings, parts=RL_PARTS, layouts=_layouts(roles))
    return checkpoint_to_resume(Path(config.output_dir), config.resume, expected)


def resume_of_fit(config: Config, settings: RunSettings) -> Resume | None:
    """The checkpoint that a stage that learns from examples goes on from.

    Raises:
        RequestError: see `checkpoint_to_resume`.
    """
    layouts = _layouts({"learner": config.training})
    expected = ResumedRun(settings=settings, parts=FIT_PARTS, layouts=layouts)
    return checkpoint_to_resume(Path(config.output_dir), config.resume, expected)


def _layouts(roles: Mapping[str, RoleConfig]) -> dict[str, RoleLayout]:
    return {
        name: RoleLayout(num_ranks=role.num_ranks, zero_stage=role.zero_stage, dtype=role.dtype)
        for name, role in roles.items()
    }


def _without(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _LEFT_OUT}
