"""Rules of a run of several stages."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.pipeline import read_report, read_stages
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config


def _stages(config: Config) -> Iterator[str]:
    if not config.pipeline.stages:
        yield (
            "pipeline.stages is empty: name at least one stage, or start from a recipe, as in "
            "recipe=pipeline_demo"
        )
        return
    try:
        read_stages(config.pipeline, config.output_dir)
        read_report(config.pipeline)
    except RequestError as error:
        yield str(error)


def _resume(config: Config) -> Iterator[str]:
    if config.resume not in ("auto", "never"):
        yield (
            f"resume={config.resume}: a pipeline goes on where it stopped, or starts anew; set "
            "resume to auto or never"
        )


PIPELINE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`pipeline.stages` is not empty, its entries name their stage and no folder of a "
        "later one, and `pipeline.report` names stages that are there.",
        keys=("pipeline.stages", "pipeline.report"),
        problems=_stages,
        stages=("pipeline",),
    ),
    Rule(
        about="`resume` of a pipeline is `auto` or `never`.",
        keys=("resume",),
        problems=_resume,
        stages=("pipeline",),
    ),
)
