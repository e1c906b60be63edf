"""The table of stages that read each group and key.

A key that a stage does not read changes nothing in its runs. The longest entry that a key lies
under decides, so that a group may be read by other stages than a key in it.
"""

from __future__ import annotations

import functools

from rlhf_ray.config.schema import all_keys
from rlhf_ray.config.stages import (
    EVALUATION_STAGES,
    FIT_STAGES,
    RL_STAGES,
    SCORING_STAGES,
    SERVER_STAGES,
    SERVICE_STAGES,
    STAGE_NAMES,
    TRAINING_STAGES,
)

# `compress` evaluates the forms that it makes, as `evaluate` does.
_EVALUATED = (*EVALUATION_STAGES, "compress")
_SCORED = (*SCORING_STAGES, "compress")
_EXAMPLES = (*FIT_STAGES, *_EVALUATED)
_WORKERS = (*TRAINING_STAGES, *_EVALUATED)
_SERVICES = tuple(dict.fromkeys((*SERVICE_STAGES, *SERVER_STAGES)))
_EXPORTED = (*_SCORED, "export")
# Sampling of a server is in its requests.
_SAMPLING_OF_RUNS = ("min_response_tokens", "min_p", "stop", "ignore_eos")
_SAMPLING_OF_MODELS = ("max_response_tokens", "temperature", "top_p", "top_k")
_FIT_ALONE = ("path", "shuffle", "eval_share")
_OF_CHATS = ("sft", "reward_model", "preference", *_EVALUATED)
_OF_ANSWERS = ("sft", "preference", *_EVALUATED)
_OF_RANKINGS = ("reward_model", "preference")

READERS: dict[str, tuple[str, ...]] = {
    # Of every stage.
    **dict.fromkeys(("recipe", "seed", "output_dir", "resume", "dry_run", "stage"), STAGE_NAMES),
    "observe.progress": STAGE_NAMES,
    **dict.fromkeys(
        ("num_steps", "prompts_per_step", "samples_per_prompt", "max_staleness"), RL_STAGES
    ),
    "model": tuple(name for name in STAGE_NAMES if name != "pipeline"),
    "model.path": tuple(
        name for name in STAGE_NAMES if name not in ("pipeline", "evaluate", "serve_reward")
    ),
    "model.chat_template": tuple(
        name for name in STAGE_NAMES if name not in ("prepare_data", "pipeline", "serve_reward")
    ),
    # `prepare_data` counts tokens and runs no model.
    **dict.fromkeys(
        ("model.template_time", "model.attention", "model.head_kernel", "model.max_file_bytes"),
        tuple(name for name in STAGE_NAMES if name not in ("prepare_data", "pipeline")),
    ),
    # Read by `pretrain`; the other stages that train have a rule that says more.
    "model.random_weights": TRAINING_STAGES,
    "data": _SCORED,
    "texts": RL_STAGES,
    "prepare": ("prepare_data",),
    "reward": _SCORED,
    "reward.model": (*_SCORED, "serve_reward"),
    "algorithm": RL_STAGES,
    # Rewards of single steps need the places where texts end.
    "algorithm.advantage": _SCORED,
    "rollout_selection": RL_STAGES,
    "generation": (*_SCORED, *SERVER_STAGES),
    "generation.num_engines": _SCORED,
    **{f"generation.{name}": _SCORED for name in _SAMPLING_OF_RUNS},
    **{f"generation.{name}": _EXPORTED for name in _SAMPLING_OF_MODELS},
    "training": TRAINING_STAGES,
    "critic": RL_STAGES,
    "reference": _SCORED,
    "examples": _EXAMPLES,
    **{f"examples.{name}": FIT_STAGES for name in _FIT_ALONE},
    # Each kind of example has its columns.
    **dict.fromkeys(("examples.text_column", "examples.pack_texts"), ("pretrain",)),
    "examples.messages_column": ("sft", *_EVALUATED),
    "examples.answer_column": _OF_ANSWERS,
    "examples.label_column": ("preference",),
    **{f"examples.{name}_column": _OF_CHATS for name in ("prompt", "tools")},
    **{
        f"examples.{name}_column": _OF_RANKINGS
        for name in ("chosen", "rejected", "margin", "ranking")
    },
    "examples.system_prompt": _OF_CHATS,
    "fit": FIT_STAGES,
    "reward_model": ("reward_model",),
    "preference": ("preference",),
    "evaluation": _SCORED,
    **{
        f"evaluation.{name}": RL_STAGES
        for name in ("every", "keep_best", "best_metric", "best_is_lowest")
    },
    # `compress` names the models and the baseline itself.
    "evaluation.models": EVALUATION_STAGES,
    "evaluation.baseline": EVALUATION_STAGES,
    "compress": ("compress",),
    "export": ("export",),
    "serve": _SERVICES,
    "chat": ("chat",),
    "pipeline": ("pipeline",),
    "publish": RL_STAGES,
    "placement": _WORKERS,
    "plan": TRAINING_STAGES,
    "checkpoint": TRAINING_STAGES,
    "deadlines": _WORKERS,
    "deadlines.start_s": (*_WORKERS, *_SERVICES, "pipeline"),
    "deadlines.stop_s": (*_WORKERS, *SERVER_STAGES),
    "deadlines.ray_s": (*_WORKERS, "serve", "pipeline"),
    # Rules compare both with the times for single requests and scores.
    **dict.fromkeys(("deadlines.generate_s", "deadlines.request_s"), _SCORED),
    "deadlines.reference_s": (*RL_STAGES, "preference"),
    "deadlines.publish_s": RL_STAGES,
    "recovery": RL_STAGES,
    "observe": TRAINING_STAGES,
    "observe.rollouts": RL_STAGES,
    "observe.rescore_every": RL_STAGES,
    "observe.dashboard": (*_WORKERS, "serve", "pipeline"),
}


@functools.cache
def readers(key: str) -> tuple[str, ...]:
    """Names of the stages that read a key, or an entry of a mapping (`placement.env.NAME`).

    Raises:
        KeyError: the table lacks the key's group, or it is no key.
    """
    name = key
    while name not in READERS:
        name, dot, _ = name.rpartition(".")
        if not dot:
            raise KeyError(key)
    return READERS[name]


def is_read(key: str, stage: str) -> bool:
    """Whether a run of the stage reads the key."""
    return stage in readers(key)


@functools.cache
def is_choice_read(group: str, stage: str) -> bool:
    """Whether a run of the stage reads a key of the group, so that `group=NAME` changes it."""
    if group in ("stage", "recipe"):
        return True
    keys = [key for key in all_keys() if key.startswith(f"{group}.")]
    return any(is_read(key, stage) for key in keys)
