"""Refusals within a second or two: without torch, a tokenizer or a worker.

The same mistakes are found again where everything is read. Here they are found before the seconds
of import that reading needs, and by `stage=plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rlhf_ray.config.errors import GatheredProblems, RequestError
from rlhf_ray.config.groups.data import DataConfig, SourceConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource, read_source
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import ONE_MODEL_STAGES, SCORING_STAGES, TRAINING_STAGES
from rlhf_ray.data.example_columns import held_out_source
from rlhf_ray.data.held_out import has_own_prompts, held_out_data
from rlhf_ray.data.preview import (
    preview_examples,
    preview_held_out,
    preview_prompts,
    preview_texts,
)
from rlhf_ray.data.sources.read import FROM_HUB, is_on_hub, source_notes
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.models.builtin import check_builtin, is_builtin
from rlhf_ray.models.location import check_template_place
from rlhf_ray.planning.gpu_memory import check_gpu_memory
from rlhf_ray.planning.hub import planned_model
from rlhf_ray.planning.shape import local_model
from rlhf_ray.rewards.load import with_absolute_paths
from rlhf_ray.stages.fit.space import check_space
from rlhf_ray.stages.inputs import check_example_files, check_models, is_made_later

_KINDS = {"pretrain": "texts", "sft": "demonstrations", "reward_model": "rankings"}


def check_request(config: Config) -> None:
    """Refuse a request for any stage but a pipeline; see `check_part`.

    Raises:
        RequestError: says what is missing or wrong.
    """
    check_part(config, made_in=())


def check_training(config: Config) -> None:
    """Refuse a request for a stage that trains: what is missing, and what fits on no GPU.

    Raises:
        RequestError: see `check_part` and `check_gpu_memory`.
    """
    problems = GatheredProblems()
    with problems.gathered():
        check_request(config)
    with problems.gathered():
        path = config.model.path
        # A run reads the file itself, a little later.
        is_plan = config.dry_run or config.stage.name == "plan"
        model = planned_model(path, seed=config.seed) if is_plan else local_model(path)
        check_gpu_memory(config, model)
    problems.refuse()


def check_part(config: Config, *, made_in: Sequence[Path]) -> None:
    """Refuse a missing model, file, checkpoint or reward function, or a missing column.

    Args:
        made_in: folders of the earlier stages of a pipeline that are not finished; files in them
            are taken to be made in time, and not looked at.

    Raises:
        RequestError: lists all that is missing or wrong, as far as it is known without the rest.
    """
    problems = GatheredProblems()
    for check in _checks(config, made_in):
        with problems.gathered():
            check()
    problems.refuse()


def _checks(config: Config, made_in: Sequence[Path]) -> Iterator[Callable[[], object]]:
    """The checks of a stage that do not need each other's result."""
    stage = config.stage.name
    if stage in TRAINING_STAGES:
        yield lambda: Checkpoints(Path(config.output_dir), keep_last=1).resolve(config.resume)
    if stage == "prepare_data":
        yield from _source_checks(config, made_in)
        return
    yield lambda: check_models(config, made_in=made_in)
    if stage == "chat" and config.chat.url is not None:
        return  # The endpoint has the model.
    if is_builtin(config.model.path) and not config.is_evaluation:
        yield lambda: check_builtin(config.model.path)
    if not is_made_later(config.model.tokenizer_path or config.model.path, made_in):
        yield lambda: check_template_place(config.model)
    if config.is_fit:
        yield lambda: _check_examples(config, made_in)
    if stage in SCORING_STAGES:
        yield lambda: with_absolute_paths(config.reward)
    if stage in (*SCORING_STAGES, "compress"):
        yield from _prompt_checks(config, made_in)
    if stage == "compress":
        yield lambda: _check_file("compress.python", config.compress.python)


def describe_sources(config: Config, *, made_in: Sequence[Path]) -> list[str]:
    """Lines for a plan: the files of a folder that are read, and data sets that were not looked at.

    Args:
        made_in: see `check_part`.

    Raises:
        RequestError: a source is missing or wrong.
    """
    if config.stage.name == "prepare_data":
        from rlhf_ray.data.prepare.reading import describe_source

        entries = [
            source for source in _prepared(config) if not is_made_later(source.path, made_in)
        ]
        return [line for source in entries for line in describe_source(source)]
    lines: list[str] = []
    for source in _sources(config):
        if not source.path or is_made_later(source.path, made_in):
            continue
        if is_on_hub(source):
            lines.append(f"not checked: {source.key('path')}={source.path} {FROM_HUB}")
        lines += source_notes(source)
    return list(dict.fromkeys(lines))


def _sources(config: Config) -> list[SourceConfig]:
    """The sources of rows that the stage reads, but for stage=prepare_data."""
    stage, examples = config.stage.name, config.examples
    if stage == "chat" and config.chat.url is not None:
        return []
    sources: list[SourceConfig] = []
    if config.is_fit:
        sources += [examples, *([held_out_source(examples)] if examples.has_eval_source else [])]
    if stage in (*SCORING_STAGES, "compress"):
        sources += _prompt_sources(config)
        if config.is_evaluation or stage in ONE_MODEL_STAGES:
            sources += [held_out_source(examples)] if examples.eval_path else []
        elif config.mixes_texts:
            sources.append(config.texts)
    return sources


def _prompt_sources(config: Config) -> list[DataConfig]:
    sources = [] if config.is_evaluation else [config.data]
    if config.is_evaluation or (config.evaluation.every and has_own_prompts(config.evaluation)):
        sources.append(held_out_data(config.evaluation, config.data))
    return sources


def _check_examples(config: Config, made_in: Sequence[Path]) -> None:
    check_example_files(config, made_in=made_in)
    examples = config.examples
    kind = _KINDS.get(config.stage.name)
    if config.stage.name == "preference":
        kind = "feedback" if config.preference.is_of_feedback else "rankings"
    assert kind is not None, f"stage={config.stage.name} learns from examples"
    if not any(is_made_later(path, made_in) for path in (examples.path, examples.eval_path)):
        preview_examples(examples, kind)
        check_space(examples)


def _prompt_checks(config: Config, made_in: Sequence[Path]) -> Iterator[Callable[[], object]]:
    for source in _prompt_sources(config):
        if source.path and not is_made_later(source.path, made_in):
            yield partial(preview_prompts, source)
    if config.is_evaluation or config.stage.name in ONE_MODEL_STAGES:
        measured = config.examples.eval_path
        if measured and not is_made_later(measured, made_in):
            yield lambda: preview_held_out(config.examples)
        return
    if config.mixes_texts and not is_made_later(config.texts.path, made_in):
        yield lambda: preview_texts(config.texts)


def _source_checks(config: Config, made_in: Sequence[Path]) -> Iterator[Callable[[], object]]:
    # The tables of layouts and readers, which other stages do not need.
    from rlhf_ray.data.prepare.reading import check_source

    for source in _prepared(config):
        if not is_made_later(source.path, made_in):
            yield partial(check_source, source)


def _prepared(config: Config) -> list[PreparedSource]:
    groups = {
        "prepare.sources": config.prepare.sources,
        "prepare.evaluation_sets": config.prepare.evaluation_sets,
    }
    return [
        read_source(name, entry, group=group)
        for group, entries in groups.items()
        for name, entry in entries.items()
    ]


def _check_file(key: str, path: str) -> None:
    if not Path(path).expanduser().is_file():
        raise RequestError(
            f"{key} is {path!r}: there is no such file. It is the Python of the environment with "
            f"LLM Compressor, which launch/setup_compress.sh makes in .venv-compress"
        )
