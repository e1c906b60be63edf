"""Models that are not made yet, and the models that they start from, which have their shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import TRAINING_STAGES
from rlhf_ray.models.builtin import BUILTIN_MODELS, builtin_folder, is_builtin
from rlhf_ray.models.location import BUILTIN_PREFIX

# What a stage that trains leaves in its folder.
_MODELS = ("model", "model_ema")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownPart:
    """A stage whose models that are not made yet are replaced by those that they start from.

    Attributes:
        config: with paths of folders that are there now, as far as they are known.
        replaced: keys of the models that are not made yet.
    """

    name: str
    config: Config
    replaced: frozenset[str]


def known_parts(parts: Sequence[tuple[str, Config]]) -> list[KnownPart]:
    """The stages of a pipeline, in order; without those that are finished."""
    made: dict[Path, str] = {}
    found = []
    for name, config in parts:
        part = _known(name, config, made)
        found.append(part)
        if config.stage.name in TRAINING_STAGES:
            path = part.config.model.path
            made |= {Path(config.output_dir) / folder: path for folder in _MODELS}
    return found


def _known(name: str, config: Config, made: Mapping[Path, str]) -> KnownPart:
    paths = {
        "model.path": config.model.path,
        "critic.path": config.critic.path,
        "reference.path": config.reference.path,
        "reward.model.path": config.reward.model.path,
    }
    origins = {key: made.get(Path(path)) for key, path in paths.items() if path}
    known = {**paths, **{key: origin for key, origin in origins.items() if origin}}
    reward_model = dataclasses.replace(config.reward.model, path=known["reward.model.path"])
    model_path = _folder(known["model.path"] or "", seed=config.seed)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=model_path),
        critic=dataclasses.replace(config.critic, path=known["critic.path"]),
        reference=dataclasses.replace(config.reference, path=known["reference.path"]),
        reward=dataclasses.replace(config.reward, model=reward_model),
    )
    replaced = frozenset(key for key, origin in origins.items() if origin)
    return KnownPart(name=name, config=config, replaced=replaced)


def _folder(path: str, *, seed: int) -> str:
    """The folder of a built-in model, which is there if an earlier run has made it."""
    is_known = is_builtin(path) and path.removeprefix(BUILTIN_PREFIX) in BUILTIN_MODELS
    return str(builtin_folder(path, seed=seed)) if is_known else path
