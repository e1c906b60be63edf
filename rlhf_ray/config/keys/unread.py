"""Keys of a request that its stage does not read: refused with the key to use instead.

A value that changes nothing would look like one that does. What a command line or a stage of a
pipeline says is refused; a recipe may serve several stages, so its unread keys are named in a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.config.keys.readers import is_choice_read, is_read
from rlhf_ray.config.keys.values import shown
from rlhf_ray.config.schema import all_keys, leaves
from rlhf_ray.config.stages import FIT_STAGES, RL_STAGES, STAGE_NAMES

_MOST_NAMED = 8
_IN_FIT = {
    "num_steps": "fit.max_steps",
    "prompts_per_step": "fit.batch_size",
    "algorithm.num_epochs": "fit.num_epochs",
    "data.max_prompt_tokens": "examples.max_tokens",
    "data.on_long_prompt": "examples.on_long",
    "generation.max_response_tokens": "examples.max_tokens",
    "evaluation.every": "fit.eval_every",
    "evaluation.keep_best": "fit.keep_best",
    "evaluation.path": "examples.eval_path",
    "evaluation.split": "examples.eval_split",
}
_IN_RL = {
    "fit.max_steps": "num_steps",
    "fit.num_epochs": "num_steps",
    "fit.batch_size": "prompts_per_step",
    "fit.eval_every": "evaluation.every",
    "fit.keep_best": "evaluation.keep_best",
    "examples.eval_path": "evaluation.path",
    "examples.eval_split": "evaluation.split",
    "examples.max_tokens": "data.max_prompt_tokens",
    "examples.on_long": "data.on_long_prompt",
    "preference.beta": "algorithm.kl_coefficient",
    "evaluation.models": "model.path",
    "serve.token_variable": "reward.http.token_variable",
}
# By stage: what is meant by a key that it does not read.
_INSTEAD: dict[str, dict[str, str]] = {
    **dict.fromkeys(FIT_STAGES, _IN_FIT),
    "preference": {**_IN_FIT, "algorithm.kl_coefficient": "preference.beta"},
    **dict.fromkeys(RL_STAGES, _IN_RL),
    "evaluate": {
        "model.path": "evaluation.models.NAME",
        "examples.path": "examples.eval_path",
        "samples_per_prompt": "evaluation.samples",
        "algorithm.kl_estimator": "evaluation.kl",
        "critic.path": "evaluation.models.NAME",
    },
    "compress": {"evaluation.models": "model.path", "examples.path": "examples.eval_path"},
    "prepare_data": {
        "data.path": "prepare.sources.NAME.path",
        "examples.path": "prepare.sources.NAME.path",
        "texts.path": "prepare.sources.NAME.path",
        "data.on_bad_row": "prepare.on_bad_row",
        "examples.on_bad_row": "prepare.on_bad_row",
        "data.shuffle": "prepare.shuffle",
        "examples.shuffle": "prepare.shuffle",
        "examples.eval_share": "prepare.eval_fraction",
        "examples.max_tokens": "prepare.max_tokens",
        "data.limit": "prepare.total_samples",
        "examples.limit": "prepare.total_samples",
    },
    "serve_reward": {"model.path": "reward.model.path"},
    "serve": {
        "generation.num_engines": "serve.replicas",
        "generation.max_response_tokens": "serve.max_model_tokens",
        "reward.model.path": "model.path",
    },
    "chat": {
        "generation.max_response_tokens": "chat.max_tokens",
        "generation.temperature": "chat.temperature",
        "generation.top_p": "chat.top_p",
        "data.system_prompt": "chat.system",
    },
    "export": {"training.dtype": "export.dtype", "generation.dtype": "export.dtype"},
}
# By stage and key: what to know about a key that has no other in its place.
_BECAUSE = {
    ("preference", "reference.path"): (
        "the reference is the model that training starts from (model.path); remove it"
    ),
}
# Groups with keys of the same names in other stages, tried in this order.
_TWINS = {
    "data": ("examples",),
    "texts": ("examples",),
    "examples": ("data",),
    "critic": ("training",),
    "fit": ("prepare",),
}


def unread_problems(
    stage: str, choices: Sequence[tuple[str, str]], values: Sequence[tuple[str, Any]]
) -> list[str]:
    """The problem of every choice and value that a stage does not read; unknown keys are skipped.

    Args:
        choices: files of groups, as in `algorithm=dapo`.
        values: keys and groups of keys with their values.
    """
    found = [
        f"{group}={name}: stage={stage} reads no key of {group}{_instead(group, name, stage)}"
        for group, name in choices
        if not is_choice_read(group, stage)
    ]
    for key, value in single_values(values):
        if not is_read(key, stage):
            found.append(
                f"{key}={shown(value)}: stage={stage} does not read {key}"
                f"{_instead(key, value, stage)}"
            )
    return found


def unread_note(stage: str, file: str, content: Mapping[str, Any]) -> str | None:
    """The note about what a file sets and a stage does not read; None without it.

    Args:
        file: its name in the words of the command line.
        content: of the file, with its `defaults`.
    """
    choices = [
        (str(group).removeprefix("override ").strip().removeprefix("/"), name)
        for entry in content.get("defaults") or ()
        if isinstance(entry, Mapping)
        for group, name in entry.items()
    ]
    values = [(name, value) for name, value in content.items() if name != "defaults"]
    names = [f"{group}={name}" for group, name in choices if not is_choice_read(group, stage)]
    names += [key for key, _ in single_values(values) if not is_read(key, stage)]
    if not names:
        return None
    count = f"{len(names)} keys" if len(names) > 1 else "a key"
    return (
        f"note: {file} sets {count} that stage={stage} does not read, without effect: "
        f"{first_names(names)}"
    )


def first_names(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def single_values(values: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Single keys with their values, without names that are no keys."""
    known = all_keys()
    mappings = tuple(f"{name}." for name, key in known.items() if key.is_mapping)
    pairs = [pair for name, value in values for pair in leaves({name: value}, "")]
    return [pair for pair in pairs if pair[0] in known or pair[0].startswith(mappings)]


def _instead(key: str, value: Any, stage: str) -> str:
    """The end of a sentence: what to use instead, or who reads the key."""
    by = ", ".join(name for name in STAGE_NAMES if name != "plan" and _reads(key, name))
    if stage == "pipeline":
        return (
            f"; set it for one of its stages that does ({by}): "
            f"pipeline.stages.NAME.{key}={shown(value)}"
        )
    if reason := _BECAUSE.get((stage, key)):
        return f": {reason}"
    other = _INSTEAD.get(stage, {}).get(key) or _twin(key, stage)
    if other is not None:
        return f"; set {other} instead"
    return f", so it would change nothing; remove it (it is read by: {by})"


def _reads(key: str, stage: str) -> bool:
    return is_read(key, stage) if key in all_keys() or "." in key else is_choice_read(key, stage)


def _twin(key: str, stage: str) -> str | None:
    """The key of the same name in a group that the stage reads."""
    group, _, name = key.partition(".")
    for other in _TWINS.get(group, ()):
        twin = f"{other}.{name}"
        if twin in all_keys() and is_read(twin, stage):
            return twin
    return None


def replacements() -> list[tuple[str, str, str]]:
    """Every stage and key with the key that is meant there."""
    return [
        (stage, key, other) for stage, others in _INSTEAD.items() for key, other in others.items()
    ]
