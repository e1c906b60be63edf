"""Disk that a run needs: its checkpoints and its models, by arithmetic over the model's files.

A checkpoint has 12 bytes of every trained weight (float32, and two moments of AdamW), 4 more with
an EMA, and nothing of frozen weights. Each rank writes an equal share. Groups that wait for a later
step are in it, too; how many they are is known when it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.config.rules.rule import trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.disk_space import free_bytes, size_in_words, space_of
from rlhf_ray.models.builtin import BUILTIN_MODELS, builtin_folder, is_builtin
from rlhf_ray.models.location import BUILTIN_PREFIX
from rlhf_ray.planning.adapter_size import adapter_weights
from rlhf_ray.planning.shape import NAME_A_FOLDER, bytes_of, local_model, num_weights
from rlhf_ray.planning.storage.waiting_groups import num_waiting, waiting_bytes

_TRAINED_BYTES, _EMA_BYTES = 12, 4
_WRITTEN = ("checkpoints", "best", "model", "model_ema")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleShare:
    """A role's part of a checkpoint.

    Attributes:
        bytes: over all ranks.
        note: what the number leaves out, for a user; empty if nothing.
    """

    name: str
    bytes: float
    num_ranks: int
    note: str = ""

    @property
    def per_rank(self) -> float:
        return self.bytes / self.num_ranks

    def __str__(self) -> str:
        ranks = "" if self.num_ranks == 1 else f" on each of {self.num_ranks} ranks"
        return f"{self.name} {size_in_words(self.per_rank)}{ranks}{self.note}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskNeed:
    """Bytes of a run on the disk of `output_dir`.

    Attributes:
        shares: of one checkpoint; empty for a run without checkpoints.
        kept: checkpoints on the disk at a time, the one that is being written included.
        is_certain: the run is known to write as many.
        model: bytes of a model in the run's number format.
        models: copies of it at most: the result, its EMA, the best of evaluations.
        waiting: bytes of the groups that wait in a checkpoint, at most.
    """

    shares: tuple[RoleShare, ...]
    kept: int
    is_certain: bool
    model: float
    models: int
    waiting: float = 0.0

    @property
    def checkpoint(self) -> float:
        return sum(share.bytes for share in self.shares)

    @property
    def most(self) -> float:
        return (self.checkpoint + self.waiting) * self.kept + self.model * self.models

    @property
    def least(self) -> float:
        return self.model + (self.checkpoint * self.kept if self.is_certain else 0)


def disk_need(config: Config) -> DiskNeed | None:
    """The need of a run that trains; None if the size of its model is not known."""
    weights = num_weights(_place_of(config))
    if weights is None:
        return None
    kept, is_certain = _num_kept(config)
    training = config.training
    best = 1 + config.checkpoint.num_kept if _keeps_best(config) else 0
    return DiskNeed(
        shares=tuple(_shares(config, weights)) if config.checkpoint.every_steps else (),
        kept=kept,
        is_certain=is_certain,
        model=weights * bytes_of(training.dtype),
        models=1 + best + (training.ema_decay is not None),
        waiting=waiting_bytes(config),
    )


def disk_lines(config: Config) -> list[str]:
    """The need of a run and what is free, as lines for a user, or why it is not known."""
    need = disk_need(config)
    if need is None:
        if local_model(_place_of(config)):
            why = "is of another family"
        elif is_builtin(config.model.path):
            why = "is made by the first run that needs it"
        else:
            why = f"is not on this machine; {NAME_A_FOLDER}"
        return [f"Disk: not compared, because model.path={config.model.path} {why}"]
    lines = []
    if need.shares:
        parts = ", ".join(map(str, need.shares))
        lines.append(
            f"Checkpoint: {size_in_words(need.checkpoint)} ({parts}); at most {need.kept} at a "
            f"time, the one that is written included"
        )
        waiting = f"{size_in_words(need.waiting)} at most"
        if need.waiting:
            lines.append(
                f"Groups that wait in it for a later step: {waiting}, if all "
                f"{num_waiting(config):,} are complete and as long as they may be"
            )
        if config.checkpoint.background:
            memory = f"{parts}, builder {waiting}" if need.waiting else parts
            lines.append(f"Host memory for a copy of it, while it is written: {memory}")
    lines.append(f"Model: {size_in_words(need.model)}, at most {need.models} at a time")
    place = Path(config.output_dir)
    fits = free_bytes(place) + _present(place) >= need.most
    lines.append(
        f"Disk: {size_in_words(need.most)} at most, and there is {space_of(place)}"
        + ("" if fits else ", WHICH IS LESS")
    )
    return lines


def _place_of(config: Config) -> str:
    """The folder of the model, which a built-in one has in the cache."""
    path = config.model.path
    is_known = is_builtin(path) and path.removeprefix(BUILTIN_PREFIX) in BUILTIN_MODELS
    return str(builtin_folder(path, seed=config.seed)) if is_known else path


def check_disk(config: Config) -> None:
    """Refuse a run that writes more than the disk has.

    Not called for a plan, which may be made on another machine.

    Raises:
        RequestError: says how much is written and how much is free.
    """
    need = disk_need(config)
    place = Path(config.output_dir)
    if need is None or free_bytes(place) + _present(place) >= need.least:
        return
    checkpoints = (
        f"{need.kept} checkpoint{'s' if need.kept > 1 else ''} of "
        f"{size_in_words(need.checkpoint)} and "
    )
    raise RequestError(
        f"output_dir={config.output_dir}: the run writes {size_in_words(need.least)} "
        f"({checkpoints if need.is_certain and need.shares else ''}a model of "
        f"{size_in_words(need.model)}), and there is {space_of(place)}: name another output_dir, "
        f"lower checkpoint.keep_last={config.checkpoint.keep_last}, or free some space"
    )


def trained_shares(config: Config) -> list[RoleShare]:
    """The parts of a checkpoint of the roles that train; none if no size is known."""
    weights = num_weights(_place_of(config))
    return [] if weights is None else list(_trained_shares(config, weights))


def _shares(config: Config, weights: int) -> Iterator[RoleShare]:
    yield from _trained_shares(config, weights)
    if config.is_fit:
        return
    if config.starts_reference and config.algorithm.reference_every > 0:
        # A reference that follows the policy slowly keeps float32 weights.
        size = 4 if config.algorithm.reference_decay > 0 else bytes_of(config.reference.dtype)
        yield _share("reference", config.reference, weights * size)


def _trained_shares(config: Config, weights: int) -> Iterator[RoleShare]:
    place = _place_of(config)
    yield _trained_share("learner", config.training, weights, place)
    if config.needs_critic and not config.is_fit:
        of_critic = config.critic.path or place
        size = num_weights(of_critic) or weights
        yield _trained_share("critic", config.critic, size, of_critic)


def _trained_share(name: str, role: TrainingConfig, weights: int, path: str) -> RoleShare:
    trained = _TRAINED_BYTES + (_EMA_BYTES if role.ema_decay is not None else 0)
    if role.lora.is_on:
        adapter = adapter_weights(local_model(path) or {}, role.lora)
        note = " and an adapter of unknown size" if adapter is None else ""
        return _share(name, role, (adapter or 0) * trained, note=note)
    note = "" if role.trains_all else " less what is frozen"
    return _share(name, role, weights * trained, note=note)


def _share(name: str, role: RoleConfig, size: float, *, note: str = "") -> RoleShare:
    return RoleShare(name=name, bytes=size, num_ranks=role.num_ranks, note=note)


def _num_kept(config: Config) -> tuple[int, bool]:
    """Checkpoints on the disk at a time, and whether the run is known to write as many."""
    every, most = config.checkpoint.every_steps, config.checkpoint.keep_last + 1
    if not every:
        return 0, True
    num_steps = config.fit.max_steps if config.is_fit else config.num_steps
    # Of frozen weights a checkpoint has nothing: how many there are is not known here.
    is_known = all(role.trains_all or role.lora.is_on for _, role in trained_roles(config))
    if num_steps is None or not is_known:
        return most, False
    # Rows may end before the steps of a stage that learns from examples.
    return min(most, num_steps // every), not config.is_fit


def _keeps_best(config: Config) -> bool:
    if config.is_fit:
        return config.fit.keep_best
    return config.evaluation.every > 0 and config.evaluation.keep_best


def _present(folder: Path) -> int:
    """Bytes that earlier runs have written, which this one replaces or goes on from."""
    sizes = 0
    for name in _WRITTEN:
        for path in (folder / name).rglob("*"):
            try:
                sizes += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue  # It was removed meanwhile.
    return sizes
