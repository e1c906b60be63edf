"""The demands of a run on the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.checkpoint_files.facts import RoleLayout
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import POLICY
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import values_of
from rlhf_ray.driver.resume_changes import ModelFiles, RunSettings
from rlhf_ray.driver.resume_choice import Resume, ResumedRun, checkpoint_to_resume
from rlhf_ray.models.fingerprint import file_hashes

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
        models=_models(config),
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
    expected = ResumedRun(
        settings=settings,
        parts=RL_PARTS,
        layouts=_layouts(roles),
        length=("num_steps", config.num_steps),
    )
    return checkpoint_to_resume(Path(config.output_dir), config.resume, expected)


def resume_of_fit(config: Config, settings: RunSettings) -> Resume | None:
    """The checkpoint that a stage that learns from examples goes on from.

    Raises:
        RequestError: see `checkpoint_to_resume`.
    """
    most = config.fit.max_steps
    expected = ResumedRun(
        settings=settings,
        parts=FIT_PARTS,
        layouts=_layouts({"learner": config.training}),
        length=None if most is None else ("fit.max_steps", most),
    )
    return checkpoint_to_resume(Path(config.output_dir), config.resume, expected)


def _models(config: Config) -> dict[str, ModelFiles]:
    """The files behind every key of a model that the run reads.

    Raises:
        RequestError: a file cannot be read.
    """
    reference = config.reference.path
    is_moved = config.algorithm.reference_every > 0
    of_policy = config.needs_reference and reference is None and not is_moved
    # Frozen weights and references are no part of a checkpoint; preferences are compared with
    # the policy at its start.
    of_critic = config.needs_critic and config.critic.path is None and not config.critic.trains_all
    is_compared = of_policy or config.stage.name == "preference"
    base = not config.training.trains_all or of_critic or is_compared
    found = {
        "model.path": (config.model.path, base),
        "model.tokenizer_path": (config.model.tokenizer_path, True),
        "model.chat_template": (config.model.chat_template, True),
    }
    if not config.is_fit:
        reward, judge = config.reward.model, config.reward.judge
        critic = config.critic
        found |= {
            "critic.path": (critic.path if config.needs_critic else None, not critic.trains_all),
            "reference.path": (reference if config.needs_reference else None, not is_moved),
            "reward.model.path": (reward.path, True),
            "reward.model.tokenizer_path": (reward.path and reward.tokenizer_path, True),
            "reward.judge.model": (None if judge.model == POLICY else judge.model, True),
        }
    return {
        key: ModelFiles(hashes=_hashes(key, path), are_weights_read=is_read)
        for key, (path, is_read) in found.items()
        if path
    }


def _hashes(key: str, path: str) -> dict[str, str]:
    try:
        return file_hashes(path)
    except OSError as error:
        raise RequestError(
            f"{key} is {path!r}: {error.filename} cannot be read: {error.strerror}; copy it again, "
            f"or let this user read it"
        ) from error


def _layouts(roles: Mapping[str, RoleConfig]) -> dict[str, RoleLayout]:
    return {
        name: RoleLayout(
            num_ranks=role.num_ranks,
            zero_stage=role.zero_stage,
            dtype=role.dtype,
            tensor_parallel_size=role.tensor_parallel_size,
        )
        for name, role in roles.items()
    }


def _without(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _LEFT_OUT}
