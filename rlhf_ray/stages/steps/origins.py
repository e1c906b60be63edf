"""Models that are not made yet, and the models that they start from, which have their shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import TRAINING_STAGES
from rlhf_ray.models.builtin import BUILTIN_MODELS, builtin_folder, is_builtin
from rlhf_ray.models.location import BUILTIN_PREFIX
from rlhf_ray.stages.inputs import is_made_later, read_models

# What a stage that trains leaves in its folder.
_MODELS = ("model", "model_ema")
_EVALUATED = "evaluation.models."


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownPart:
    """A stage whose models that are not made yet are replaced by those that they start from.

    Attributes:
        config: with paths of folders that are there now, as far as they are known.
        replaced: keys of the models that are not made yet.
        unknown: keys of the models whose shapes nothing here says: of the hub, built in and not
            made, or left by a stage that does not train.
    """

    name: str
    config: Config
    replaced: frozenset[str]
    unknown: frozenset[str]


def known_parts(parts: Sequence[tuple[str, Config]]) -> list[KnownPart]:
    """The stages of a pipeline, in order; without those that are finished."""
    made: dict[Path, str] = {}
    folders: list[Path] = []
    found = []
    for name, config in parts:
        part = _known(name, config, made, folders)
        found.append(part)
        folder = Path(config.output_dir)
        folders.append(folder)
        if config.stage.name in TRAINING_STAGES:
            path = part.config.model.path
            made |= {_place(str(folder / each)): path for each in _MODELS}
    return found


def _known(
    name: str, config: Config, made: Mapping[Path, str], folders: Sequence[Path]
) -> KnownPart:
    known = copy.deepcopy(config)
    replaced, unknown = set(), set()
    for model in read_models(config):
        path = model.path
        if origin := made.get(_place(path)):
            replaced.add(model.key)
            path = origin
        if model.key == "model.path":
            path = _folder(path, seed=config.seed)
        _set(known, model.key, path)
        if is_made_later(path, folders) or not (_place(path) / "config.json").is_file():
            unknown.add(model.key)
    return KnownPart(
        name=name, config=known, replaced=frozenset(replaced), unknown=frozenset(unknown)
    )


def _place(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _set(config: Config, key: str, path: str) -> None:
    """Set the path of a model by the dotted name that `read_models` gives."""
    if key.startswith(_EVALUATED):
        config.evaluation.models[key.removeprefix(_EVALUATED)] = path
        return
    *groups, last = key.split(".")
    place: Any = config
    for group in groups:
        place = getattr(place, group)
    setattr(place, last, path)


def _folder(path: str, *, seed: int) -> str:
    """The folder of a built-in model, which is there if an earlier run has made it."""
    is_known = is_builtin(path) and path.removeprefix(BUILTIN_PREFIX) in BUILTIN_MODELS
    return str(builtin_folder(path, seed=seed)) if is_known else path
