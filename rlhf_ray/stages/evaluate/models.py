"""The models of an evaluation: their folders, and the lengths that they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.run import Config
from rlhf_ray.generation.requirements import check_head_size
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.checks.whole_model import Use, check_weights
from rlhf_ray.models.location import check_location
from rlhf_ray.stages.model_files import check_model_files
from rlhf_ray.stages.positions import (
    check_engine_length,
    check_sequences,
    context_of_model,
    examples_within,
)

Report = Callable[[str], None]


def candidate_models(
    paths: Mapping[str, str], shared: ModelConfig, seed: int, report: Report
) -> dict[str, ModelConfig]:
    """The settings of every model by its name, with a folder or hub name as path."""
    found: dict[str, ModelConfig] = {}
    for name, path in paths.items():
        with about_model(name):
            found[name] = _model(shared, name, path, seed, report)
    return found


def demonstrations_within(
    models: Mapping[str, ModelConfig], examples: ExamplesConfig, report: Report
) -> ExamplesConfig:
    """Demonstrations that every model reads with one more token, which an engine needs."""
    if examples.eval_path is None:
        return examples
    for name, model in models.items():
        with about_model(name):
            context = context_of_model(model)
            room = None if context is None else context - 1
            examples = examples_within(examples, room, model.path, report)
    return examples


def check_engine_models(models: Mapping[str, ModelConfig], config: Config) -> None:
    """Refuse a model that an engine cannot load or run, or that reads less than it is to."""
    for name, model in models.items():
        with about_model(name):
            check_weights(model, Use.ENGINE)
            check_head_size(model, config.generation)
            check_sequences(dataclasses.replace(config, model=model))
            check_engine_length(
                model, config.evaluation.lm_eval_max_tokens, key="evaluation.lm_eval_max_tokens"
            )
    baseline = models[config.evaluation.baseline_name]
    check_model_files(dataclasses.replace(config, model=baseline))


def _model(model: ModelConfig, name: str, path: str, seed: int, report: Report) -> ModelConfig:
    path = resolve_model_path(path, seed=seed, report=report)
    check_location(path, f"evaluation.models.{name}", needs_config=True)
    return dataclasses.replace(model, path=path)


@contextmanager
def about_model(name: str) -> Iterator[None]:
    """Say of which model an error is."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"evaluation.models.{name}: {error}") from error
