"""Keys and choices that are meant by names of other libraries, and by names in a wrong place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from rlhf_ray.config.keys.readers import is_read
from rlhf_ray.config.schema import all_keys

# Names of TRL, verl, transformers and OpenRLHF, and the keys here. Where stages differ, the key of
# reinforcement learning is first, and a stage that does not read it names the other.
FOREIGN_KEYS: dict[str, tuple[str, ...]] = {
    "lr": ("training.learning_rate",),
    "actor_learning_rate": ("training.learning_rate",),
    "critic_lr": ("critic.learning_rate",),
    "model_name_or_path": ("model.path",),
    "model_name": ("model.path",),
    "model_path": ("model.path",),
    "base_model": ("model.path",),
    "pretrain": ("model.path",),
    "tokenizer": ("model.tokenizer_path",),
    "tokenizer_name_or_path": ("model.tokenizer_path",),
    "ref_model": ("reference.path",),
    "dataset": ("data.path", "examples.path"),
    "dataset_name": ("data.path", "examples.path"),
    "train_file": ("data.path", "examples.path"),
    "train_files": ("data.path", "examples.path"),
    "val_files": ("evaluation.path", "examples.eval_path"),
    "eval_dataset": ("evaluation.path", "examples.eval_path"),
    "prompt_key": ("data.prompt_column", "examples.prompt_column"),
    "batch_size": ("prompts_per_step", "fit.batch_size"),
    "train_batch_size": ("prompts_per_step", "fit.batch_size"),
    "per_device_train_batch_size": ("prompts_per_step", "fit.batch_size"),
    "gradient_accumulation_steps": (
        "prompts_per_step",
        "fit.batch_size",
        "training.max_tokens_per_micro_batch",
    ),
    "epochs": ("num_steps", "fit.num_epochs"),
    "num_epochs": ("num_steps", "fit.num_epochs"),
    "num_train_epochs": ("num_steps", "fit.num_epochs"),
    "total_epochs": ("num_steps", "fit.num_epochs"),
    "max_steps": ("num_steps", "fit.max_steps"),
    "total_training_steps": ("num_steps", "fit.max_steps"),
    "num_generations": ("samples_per_prompt",),
    "n_samples_per_prompt": ("samples_per_prompt",),
    "rollout_n": ("samples_per_prompt",),
    "rollout.n": ("samples_per_prompt",),
    "async": ("max_staleness",),
    "beta": ("algorithm.kl_coefficient", "preference.beta"),
    "kl_coef": ("algorithm.kl_coefficient",),
    "kl_loss_coef": ("algorithm.kl_coefficient",),
    "adv_estimator": ("algorithm.advantage",),
    "init_kl_coef": ("algorithm.kl_coefficient",),
    "max_length": ("generation.max_response_tokens", "examples.max_tokens"),
    "max_seq_length": ("examples.max_tokens",),
    "max_new_tokens": ("generation.max_response_tokens",),
    "max_completion_length": ("generation.max_response_tokens",),
    "max_response_length": ("generation.max_response_tokens", "examples.max_tokens"),
    "max_prompt_length": ("data.max_prompt_tokens", "examples.max_tokens"),
    "reward_funcs": ("reward.functions",),
    "reward_function": ("reward.functions",),
    "reward_model_path": ("reward.model.path",),
    "save_steps": ("checkpoint.every_steps",),
    "save_freq": ("checkpoint.every_steps",),
    "eval_steps": ("evaluation.every", "fit.eval_every"),
    "test_freq": ("evaluation.every", "fit.eval_every"),
    "max_grad_norm": ("training.gradient_clip_norm",),
    "bf16": ("training.dtype",),
    "output": ("output_dir",),
    "default_local_dir": ("output_dir",),
    # Names of verl whose last part alone says too little.
    "actor_rollout_ref.model.path": ("model.path",),
    "actor_rollout_ref.rollout.n": ("samples_per_prompt",),
    "actor_rollout_ref.rollout.temperature": ("generation.temperature",),
    "actor_rollout_ref.rollout.top_p": ("generation.top_p",),
    "actor_rollout_ref.rollout.top_k": ("generation.top_k",),
    "actor_rollout_ref.rollout.tensor_model_parallel_size": ("generation.tensor_parallel_size",),
    "custom_reward_function.path": ("reward.functions",),
}
_EPOCHS_OF_RL = (
    "an epoch of reinforcement learning is the number of prompts / prompts_per_step steps"
)
_NO_ACCUMULATION = (
    "there is no such number: a step has as many samples as the batch says, and as many forward "
    "passes as the tokens of a micro-batch need"
)
# What to know about names whose meaning no key has; by name, with the keys that it is true of.
_REMARKS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("epochs", "num_epochs", "num_train_epochs", "total_epochs"), ("num_steps", _EPOCHS_OF_RL)
    ),
    "gradient_accumulation_steps": ("training.max_tokens_per_micro_batch", _NO_ACCUMULATION),
    "async": ("max_staleness", "0 is synchronous, 1 or more trains while engines generate"),
}
# Groups whose choice is often taken for a value: the key with that value.
GROUP_VALUES = {
    "model": "model.path={}",
    "data": "data.path={}",
    "reward": "reward.functions=[{}]",
}
# Stages by names of methods.
METHOD_STAGES = {
    "dpo": "stage=preference",
    "ipo": "stage=preference preference.loss=ipo",
    "slic": "stage=preference preference.loss=hinge",
    "kto": "stage=preference preference.loss=kto",
}
# Methods that look like names of others.
_MISSING_METHODS = ("orpo", "simpo", "cpo")
# Algorithms by their other names.
OTHER_ALGORITHMS = {
    **dict.fromkeys(("reinforce++", "reinforce_plus_plus", "reinforcepp"), "reinforce_pp"),
    **dict.fromkeys(
        ("reinforce++_baseline", "reinforce_plus_plus_baseline", "reinforce_baseline"),
        "reinforce_pp_baseline",
    ),
    **dict.fromkeys(("gae", "actor_critic"), "ppo"),
    **dict.fromkeys(("group_norm", "group"), "grpo"),
}
# Stages by other words for them.
WORD_STAGES = {
    **dict.fromkeys(("rm", "reward"), "stage=reward_model"),
    **dict.fromkeys(("rlhf", "rlvr", "train"), "stage=rl"),
    **dict.fromkeys(("data", "prepare"), "stage=prepare_data"),
    **dict.fromkeys(("quantize", "quantise"), "stage=compress"),
}


def meant_keys(name: str, stage: str | None) -> tuple[str, ...]:
    """Keys that are meant by a name of another library; empty if it is not known.

    Where a group of the name has such a key that the stage reads, as with training.lr, that key
    alone.
    """
    name = name.lower().replace("-", "_")
    group, _, last = name.rpartition(".")
    keys = FOREIGN_KEYS.get(name) or FOREIGN_KEYS.get(last, ())
    outer = group.partition(".")[0]
    near = dict.fromkeys(f"{outer}.{key.rpartition('.')[2]}" for key in keys)
    return tuple(key for key in near if key in all_keys() and _may_read(stage, key)) or keys


def remark_on(name: str, near: Sequence[str], stage: str | None) -> str:
    """The end of a message about a name of another library that means something else; or none.

    Args:
        near: keys that may be meant.
    """
    last = name.lower().replace("-", "_").rpartition(".")[2]
    key, words = _REMARKS.get(last, ("", ""))
    return f" ({words})" if key in near and _may_read(stage, key) else ""


def hint_of_keys(near: Sequence[str], stage: str | None) -> str:
    """The end of a message about an unknown key: those that are meant, as far as they are read.

    Args:
        near: keys that may be meant.
        stage: of the request; None if it is not known.
    """
    read = [key for key in near if _may_read(stage, key)]
    if read:
        return f"did you mean {' or '.join(read)}?"
    return f"it reads like {' or '.join(near)}, which stage={stage} does not read"


def _may_read(stage: str | None, key: str) -> bool:
    return stage is None or stage == "pipeline" or is_read(key, stage)


def means_stage(group: str, value: str, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether a refused `group=value` was to choose the stage, which is then not known."""
    names = (*METHOD_STAGES, *_MISSING_METHODS, *WORD_STAGES, *groups["stage"])
    return group == "stage" or (group == "algorithm" and value.lower() in names)


def choice_hint(group: str, value: str, groups: Mapping[str, Sequence[str]]) -> str:
    """A sentence about what is meant by `group=value`, which is no choice of the group; or none.

    Args:
        groups: names of the choices of every group.
    """
    name = value.lower()
    names_methods = group in ("stage", "algorithm", "recipe")
    if names_methods and name in METHOD_STAGES:
        return f"{name.upper()} is {METHOD_STAGES[name]}. "
    if names_methods and name in _MISSING_METHODS:
        known = ", ".join(method.upper() for method in METHOD_STAGES)
        return f"{name.upper()} is not implemented; stage=preference has {known}. "
    meant = _meant_choice(group, value, groups)
    return f"did you mean {meant}? " if meant else ""


def _meant_choice(group: str, value: str, groups: Mapping[str, Sequence[str]]) -> str | None:
    name = value.lower()
    if group in ("stage", "algorithm", "recipe"):
        # An exact name beats one that looks alike.
        for other in ("algorithm", "stage", "recipe"):
            if name in groups.get(other, ()):
                return f"{other}={name}"
        if name in WORD_STAGES:
            return WORD_STAGES[name]
        if algorithm := OTHER_ALGORITHMS.get(name.replace("-", "_")):
            return f"algorithm={algorithm}"
    if value.endswith((".yaml", ".yml")) and group not in GROUP_VALUES:
        return None  # The file of the user's own.
    if close := difflib.get_close_matches(value, groups[group], n=1):
        return f"{group}={close[0]}"
    return GROUP_VALUES[group].format(value) if group in GROUP_VALUES else None
