"""Rules of the data stage: sources, weights, splits, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.prepare_sources import (
    BECOMES,
    STAGE_KINDS,
    PreparedSource,
    read_source,
    read_split,
)
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import DATA_STAGES, STAGE_NAMES, TRAINING_STAGES

# A pipeline goes on from its record.
_WITHOUT_CHECKPOINTS = tuple(
    name for name in STAGE_NAMES if name not in (*TRAINING_STAGES, "pipeline")
)


def _sources(config: Config) -> Iterator[str]:
    if not config.prepare.sources:
        yield (
            "prepare.sources is empty: name at least one, as in prepare.sources.NAME.path=FILE "
            "prepare.sources.NAME.kind=prompt"
        )
    yield from _problems("prepare.sources", config.prepare.sources)
    yield from _problems("prepare.evaluation_sets", config.prepare.evaluation_sets)


def _problems(group: str, entries: dict[str, Any]) -> Iterator[str]:
    for name, entry in entries.items():
        try:
            read_source(name, entry, group=group)
        except RequestError as error:
            yield str(error)


def _weights(config: Config) -> Iterator[str]:
    sources = _readable_sources(config)
    without = [source.name for source in sources if source.weight is None]
    if without and len(without) < len(sources):
        yield (
            f"prepare.sources.{without[0]}.weight is not set, but other sources have one; set the "
            "weight of every source, or of none to use all samples"
        )
    elif without and config.prepare.total_samples is not None:
        yield (
            f"prepare.total_samples={config.prepare.total_samples}: needs weights of the sources; "
            f"set prepare.sources.{without[0]}.weight, or total_samples to null"
        )


def _split(config: Config) -> Iterator[str]:
    try:
        common = read_split("prepare.split", config.prepare.split)
    except RequestError as error:
        yield str(error)
        return
    for source in _readable_sources(config):
        if source.split is not None and not common:
            yield (
                f"prepare.sources.{source.name}.split={list(source.split)}: needs prepare.split, "
                "as in prepare.split=[2,4,4]"
            )
            continue
        shares = source.split or common
        for (stage, kind), share in zip(STAGE_KINDS.items(), shares, strict=False):
            if share > 0 and kind not in (source.kind, *BECOMES[source.kind]):
                yield (
                    f"prepare.sources.{source.name}: the split has a share for {stage}, which "
                    f"reads kind={kind}, but kind={source.kind} cannot become kind={kind}; set "
                    f"prepare.sources.{source.name}.split with 0 for {stage}"
                )


def _lengths(config: Config) -> Iterator[str]:
    prepare = config.prepare
    shortest, longest = prepare.min_characters, prepare.max_characters
    if shortest is not None and longest is not None and shortest > longest:
        yield (
            f"prepare.min_characters={shortest}: is more than prepare.max_characters={longest}, so "
            "no sample remains; lower min_characters or raise max_characters"
        )
    if prepare.max_tokens is not None and not config.model.path:
        yield (
            f"prepare.max_tokens={prepare.max_tokens}: tokens are counted with a model's "
            "tokenizer; set model.path, or use prepare.max_characters"
        )


def _has_no_checkpoints(config: Config) -> Iterator[str]:
    if config.resume not in ("auto", "never"):
        yield (
            f"resume={config.resume}: stage={config.stage.name} has no checkpoints and always "
            "starts from the beginning; leave it at auto"
        )


def _readable_sources(config: Config) -> list[PreparedSource]:
    """The well-formed sources; the first rule reports the others."""
    sources = []
    for name, entry in config.prepare.sources.items():
        try:
            sources.append(read_source(name, entry, group="prepare.sources"))
        except RequestError:
            continue
    return sources


PREPARE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`prepare.sources` is not empty; its entries and those of `prepare.evaluation_sets` "
        "are well-formed.",
        keys=("prepare.sources", "prepare.evaluation_sets"),
        problems=_sources,
        stages=DATA_STAGES,
    ),
    Rule(
        about="All entries of `prepare.sources` have a `weight`, or none has; "
        "`prepare.total_samples` needs weights.",
        keys=("prepare.sources", "prepare.total_samples"),
        problems=_weights,
        stages=DATA_STAGES,
    ),
    Rule(
        about="`prepare.split` has a share for each of sft, reward_model and rl, and every source "
        "can become the kind that these stages read.",
        keys=("prepare.split", "prepare.sources"),
        problems=_split,
        stages=DATA_STAGES,
    ),
    Rule(
        about="`prepare.min_characters` is at most `prepare.max_characters`; `prepare.max_tokens` "
        "needs `model.path`.",
        keys=(
            "prepare.min_characters",
            "prepare.max_characters",
            "prepare.max_tokens",
            "model.path",
        ),
        problems=_lengths,
        stages=DATA_STAGES,
    ),
    Rule(
        about="`resume` is `auto` or `never`, because these stages have no checkpoints.",
        keys=("resume",),
        problems=_has_no_checkpoints,
        stages=_WITHOUT_CHECKPOINTS,
    ),
)
