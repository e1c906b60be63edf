"""Pipelines: several stages as one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.setting import setting
from rlhf_ray.config.stages import ENDLESS_STAGES

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FOLDER = re.compile(r"\{([^{}]*)\}")
# Keys that the pipeline sets for every stage.
_ITS_OWN = ("output_dir", "resume", "seed", "dry_run")


@dataclass
class PipelineConfig:
    """`stage=pipeline`: stages to run one after the other, and figures to report."""

    stages: dict[str, Any] = setting(
        {},
        "Values of every stage, by a name of your choice and in order: {stage: sft, model: "
        "{path: '{base}/model'}}. {NAME} is the folder of an earlier stage, output_dir/NAME.",
    )
    report: dict[str, str] = setting(
        {},
        "Figures of summary.json by name: STAGE:PATH, where PATH leads to the figure in the "
        "summary.json of that stage (evaluation.json, compression.json), as in "
        "'ppo:parts_last.helpful'.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineStage:
    """One stage of a pipeline.

    Attributes:
        name: name of the stage and of its folder.
        values: choices of groups and values of keys, with folders of earlier stages filled in.
    """

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure of the report: the value at `path` in the summary of `stage`."""

    name: str
    stage: str
    path: tuple[str, ...]


def read_stages(pipeline: PipelineConfig, output_dir: str) -> tuple[PipelineStage, ...]:
    """Read the stages, in order.

    Raises:
        RequestError: an entry is malformed, or names a folder that no earlier stage writes.
    """
    folders: dict[str, str] = {}
    stages = []
    for name, values in pipeline.stages.items():
        where = f"pipeline.stages.{name}"
        if not _NAME.fullmatch(str(name)):
            raise RequestError(
                f"{where}: a stage's name has letters, digits, '_' and '-' only; rename it"
            )
        if not isinstance(values, Mapping) or not isinstance(values.get("stage"), str):
            raise RequestError(
                f"{where}: must be a mapping that names its stage, as in {{stage: sft, ...}}"
                f"{_others(pipeline.stages, name)}"
            )
        if values["stage"] == "pipeline":
            raise RequestError(
                f"{where}.stage=pipeline: a pipeline cannot contain a pipeline; list its stages"
            )
        if values["stage"] in ENDLESS_STAGES:
            raise RequestError(
                f"{where}.stage={values['stage']}: this stage runs until it is stopped, so the "
                f"pipeline would never continue; start it separately"
            )
        for key in _ITS_OWN:
            if key in values:
                raise RequestError(
                    f"{where}.{key}: the pipeline sets it; set {key} of the pipeline instead"
                )
        stages.append(PipelineStage(name=name, values=_filled_in(dict(values), folders, where)))
        folders[name] = str(Path(output_dir) / name)
    return tuple(stages)


def read_report(pipeline: PipelineConfig) -> tuple[Figure, ...]:
    """Read the figures to report.

    Raises:
        RequestError: an entry is malformed, or names a stage that does not exist.
    """
    figures = []
    for name, text in pipeline.report.items():
        stage, _, path = text.partition(":")
        if not path or stage not in pipeline.stages:
            raise RequestError(
                f"pipeline.report.{name}={text}: must be STAGE:PATH with one of the stages "
                f"{', '.join(pipeline.stages)}, as in {next(iter(pipeline.stages), 'sft')}:result"
            )
        figures.append(Figure(name=name, stage=stage, path=tuple(path.split("."))))
    return tuple(figures)


def _others(stages: Mapping[str, Any], name: str) -> str:
    """The end of a sentence: the stages that there are, for a key of a misspelt one."""
    others = ", ".join(other for other in stages if other != name)
    return f"; the others are: {others}" if others else ""


def _filled_in(value: Any, folders: Mapping[str, str], where: str) -> Any:
    """Fill the folders of earlier stages into all texts of `value`, at any depth."""
    if isinstance(value, Mapping):
        return {key: _filled_in(inner, folders, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_filled_in(inner, folders, where) for inner in value]
    if not isinstance(value, str):
        return value

    def folder_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in folders:
            known = ", ".join(folders) or "none"
            raise RequestError(
                f"{where}={value}: there is no stage {name!r} before this one; {{NAME}} is the "
                f"folder of an earlier stage ({known})"
            )
        return folders[name]

    return _FOLDER.sub(folder_of, value)
