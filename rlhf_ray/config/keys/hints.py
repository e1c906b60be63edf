"""Keys and choices that are meant by names of other libraries, and by names in a wrong place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

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
    "prompt_key": ("data.prompt_column",),
    "batch_size": ("prompts_per_step", "fit.batch_size"),
    "train_batch_size": ("prompts_per_step", "fit.batch_size"),
    "per_device_train_batch_size": ("prompts_per_step", "fit.batch_size"),
    "gradient_accumulation_steps": ("training.max_tokens_per_micro_batch",),
    "epochs": ("num_steps", "fit.num_epochs"),
    "num_epochs": ("num_steps", "fit.num_epochs"),
    "num_train_epochs": ("num_steps", "fit.num_epochs"),
    "max_steps": ("num_steps", "fit.max_steps"),
    "total_training_steps": ("num_steps", "fit.max_steps"),
    "num_generations": ("samples_per_prompt",),
    "n_samples_per_prompt": ("samples_per_prompt",),
    "rollout_n": ("samples_per_prompt",),
    "beta": ("algorithm.kl_coefficient", "preference.beta"),
    "kl_coef": ("algorithm.kl_coefficient",),
    "init_kl_coef": ("algorithm.kl_coefficient",),
    "max_length": ("generation.max_response_tokens", "examples.max_tokens"),
    "max_seq_length": ("examples.max_tokens",),
    "max_new_tokens": ("generation.max_response_tokens",),
    "max_completion_length": ("generation.max_response_tokens",),
    "max_prompt_length": ("data.max_prompt_tokens",),
    "reward_funcs": ("reward.functions",),
    "reward_function": ("reward.functions",),
    "reward_model_path": ("reward.model.path",),
    "save_steps": ("checkpoint.every_steps",),
    "eval_steps": ("evaluation.every", "fit.eval_every"),
    "max_grad_norm": ("training.gradient_clip_norm",),
    "bf16": ("training.dtype",),
    "output": ("output_dir",),
}
# Groups whose choice is often taken for a value: the key with that value.
GROUP_VALUES = {
    "model": "model.path={}",
    "data": "data.path={}",
    "reward": "reward.functions=[{}]",
}
# Stages by names of methods and of what is wanted.
METHOD_STAGES = {
    **dict.fromkeys(("dpo", "ipo", "simpo", "slic"), "stage=preference"),
    "kto": "stage=preference preference.loss=kto",
    **dict.fromkeys(("rm", "reward"), "stage=reward_model"),
    **dict.fromkeys(("rlhf", "rlvr", "train"), "stage=rl"),
    **dict.fromkeys(("data", "prepare"), "stage=prepare_data"),
    **dict.fromkeys(("quantize", "quantise"), "stage=compress"),
}


def meant_keys(name: str) -> tuple[str, ...]:
    """Keys that are meant by a name of another library; empty if it is not known."""
    return FOREIGN_KEYS.get(name.lower().replace("-", "_"), ())


def meant_choice(group: str, value: str, groups: Mapping[str, Sequence[str]]) -> str | None:
    """The arguments that are meant by `group=value`, which is no choice of the group.

    Args:
        groups: names of the choices of every group.
    """
    if close := difflib.get_close_matches(value, groups[group], n=1):
        return f"{group}={close[0]}"
    name = value.lower()
    if group in ("stage", "algorithm", "recipe"):
        if name in METHOD_STAGES:
            return METHOD_STAGES[name]
        for other in ("algorithm", "stage", "recipe"):
            if name in groups.get(other, ()):
                return f"{other}={name}"
    return GROUP_VALUES[group].format(value) if group in GROUP_VALUES else None
