"""Checks of the files of every model of a run, before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.rules.rule import model_roles
from rlhf_ray.config.run import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_ray.models.checks.whole_model import Use

Report = Callable[[str], None]


def check_model_files(config: Config, *, shapes_only: Collection[str] = ()) -> None:
    """Refuse folders whose weights the roles of a stage could not load, by their headers.

    Args:
        config: with resolved paths.
        shapes_only: keys of models that are not made yet; the path is of one with the same shapes,
            but for the judge's, of which nothing else is looked at.

    Raises:
        RequestError: names the setting, the file or weights, and what is wrong.
    """
    # Seconds of import, which the description of a stage does not need.
    from rlhf_ray.models.checks.one_model import check_engine_reads
    from rlhf_ray.models.checks.whole_model import check_weights

    seen: set[tuple[str, Use]] = set()
    for key, path, use in _model_roles(config):
        if key not in shapes_only and (path, use) not in seen:
            seen.add((path, use))
            check_weights(_at(config, path), use, key=key)
    # The engines start from the same folder as the learner.
    is_of_engines = not (config.is_fit or config.is_evaluation) and "model.path" not in shapes_only
    if is_of_engines and Path(config.model.path).is_dir():
        check_engine_reads(Path(config.model.path), "model.path")
    _check_division(config)


def _check_division(config: Config) -> None:
    """Refuse models that cannot be divided as their roles say, by samples or in slices."""
    from rlhf_ray.models.checks.parallelism import check_divisible
    from rlhf_ray.models.checks.tensor_plan import check_sliceable

    own = {
        "critic": ("critic.path", config.critic.path),
        "reference": ("reference.path", config.reference.path),
        "reward.model": ("reward.model.path", config.reward.model.path),
    }
    for group, role in model_roles(config):
        key, path = own.get(group, ("model.path", None))
        model, key = _at(config, path or config.model.path), key if path else "model.path"
        if role.sequence_parallel_size > 1:
            check_divisible(model, role.sequence_parallel_size, key=key, role=group)
        if role.tensor_parallel_size > 1:
            check_sliceable(model, role.tensor_parallel_size, key=key, role=group)


def _model_roles(config: Config) -> Iterator[tuple[str, str, Use]]:
    """Key, path and use of the models that the stage loads, except those of `evaluation.models`."""
    from rlhf_ray.models.checks.whole_model import Use

    trains_scores = config.stage.name == "reward_model"
    if not config.is_evaluation and not config.model.random_weights:
        yield "model.path", config.model.path, Use.SCORES if trains_scores else Use.POLICY
    if config.is_fit:
        return
    policy = config.model.path
    if config.needs_critic:
        key = "critic.path" if config.critic.path else "model.path"
        yield key, config.critic.path or policy, Use.SCORES
    if config.starts_reference:
        key = "reference.path" if config.reference.path else "model.path"
        yield key, config.reference.path or policy, Use.POLICY
    reward = config.reward
    if config.needs_reward_model and reward.model.path:
        yield "reward.model.path", reward.model.path, Use.SCORES
    if reward.judge.model and reward.judge.has_engines:
        yield "reward.judge.model", reward.judge.model, Use.ENGINE


def check_trained_model(config: Config, report: Report) -> PreTrainedTokenizerBase:
    """Check all that can be known of the models of a stage that trains, and of its result.

    Args:
        config: with resolved paths.
        report: takes a line for every setting of the model that is mended.

    Returns:
        The tokenizer.

    Raises:
        RequestError: see `check_model_files`; or the chat template cannot be used, or the result
            could not be saved.
    """
    from rlhf_ray.models.checks.chat_template import check_chat_template
    from rlhf_ray.models.loading import load_tokenizer

    check_model_files(config)
    tokenizer = load_tokenizer(config.model)
    rendered = config.examples if config.is_fit else config.data
    if rendered.apply_chat_template and config.stage.name != "pretrain":
        check_chat_template(tokenizer, config.model.tokenizer_path or config.model.path)
    _save_on_trial(config, tokenizer, report)
    return tokenizer


def _save_on_trial(config: Config, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    """Save the model of a stage that trains without its weights; see `try_saving`."""
    from rlhf_ray.models.loading import empty_policy, empty_scalar_head
    from rlhf_ray.models.reward_folder import new_classifier
    from rlhf_ray.models.saving.trial import read_generation_settings, try_saving

    if config.stage.name == "reward_model":
        model = empty_scalar_head(config.model)
        classifier = new_classifier(model, list(model.state_dict()), tokenizer)
        try_saving(classifier, tokenizer, config.model.path)
        return
    empty = empty_policy(config.model)
    for line in read_generation_settings(empty, config.model):
        report(line)
    try_saving(empty, tokenizer, config.model.path)


def _at(config: Config, path: str) -> ModelConfig:
    return dataclasses.replace(config.model, path=path)
