"""Values of keys with choices by the names of other libraries, and what is meant by them."""

from __future__ import annotations

import difflib
from typing import Any

from rlhf_ray.config.setting import Setting

_DTYPES = {
    **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp32", "float", "torch.float32", "no"), "float32"),
}
_SCHEDULES = {
    **dict.fromkeys(("constant_with_warmup", "none"), "constant, with training.warmup_steps"),
    **dict.fromkeys(("linear_with_warmup", "linear_decay"), "linear"),
    **dict.fromkeys(("cosine_with_min_lr", "cosine_with_restarts", "cosine_annealing"), "cosine"),
}
# Names of TRL, verl, OpenRLHF and papers, by key or by its last part. The first word is the choice,
# and words on it may follow.
FOREIGN_VALUES: dict[str, dict[str, str]] = {
    "preference.loss": {
        **dict.fromkeys(("dpo", "dpo_loss", "logistic", "sigmoid_loss"), "sigmoid (DPO's loss)"),
        **dict.fromkeys(
            ("cdpo", "conservative_dpo"),
            "sigmoid, with preference.label_smoothing for conservative DPO",
        ),
        **dict.fromkeys(("rdpo", "robust_dpo"), "robust, with preference.label_smoothing"),
        **dict.fromkeys(("slic", "slic_hf"), "hinge (SLiC's loss)"),
        "ipo_loss": "ipo",
        "sigmoid_norm": "sigmoid, with preference.divide_by_length=true",
        **dict.fromkeys(
            ("kto_pair", "kto_loss"), "kto, whose rows have single answers labelled good or bad"
        ),
    },
    "algorithm.advantage": {
        **dict.fromkeys(
            ("grpo", "grpo_vectorized", "group_norm", "group_mean"),
            "group (GRPO's advantages; algorithm=grpo is the whole method)",
        ),
        **dict.fromkeys(
            ("dr_grpo", "drgrpo"),
            "group, with algorithm.normalize_by_std=false (algorithm=dr_grpo)",
        ),
        **dict.fromkeys(
            ("reinforce++", "reinforce_plus_plus", "reinforce_pp"),
            "returns (REINFORCE++'s advantages; algorithm=reinforce_pp is the whole method)",
        ),
        **dict.fromkeys(
            (
                "reinforce++_baseline",
                "reinforce_plus_plus_baseline",
                "reinforce_pp_baseline",
                "reinforce_baseline",
            ),
            "group, with the other settings of algorithm=reinforce_pp_baseline",
        ),
        **dict.fromkeys(("reinforce", "vanilla"), "baseline (algorithm=reinforce)"),
        **dict.fromkeys(("ppo", "critic"), "gae (PPO's advantages, with a critic)"),
        **dict.fromkeys(("leave_one_out", "rloo_vectorized"), "rloo"),
    },
    "algorithm.policy_loss": {
        **dict.fromkeys(
            ("ppo", "vanilla", "ppo_clip", "grpo", "dapo", "bnpo"), "clip (PPO's loss)"
        ),
        **dict.fromkeys(("reinforce", "pg", "no_clip"), "unclipped"),
        **dict.fromkeys(("geo_mean", "geometric_mean"), "gmpo"),
        "gspo": "clip, with algorithm.ratio_level=sequence (algorithm=gspo)",
    },
    "algorithm.ratio_level": {
        "gspo": "sequence",
        "gspo_token": "sequence_token",
        "seq": "sequence",
    },
    "algorithm.reduction": {
        **dict.fromkeys(("token", "dapo", "bnpo"), "token_mean"),
        **dict.fromkeys(("seq_mean_token_mean", "sequence", "grpo"), "sequence_mean"),
        "seq_mean_token_sum": "sequence_sum",
        **dict.fromkeys(("seq_mean_token_sum_norm", "dr_grpo"), "constant_length (Dr. GRPO)"),
    },
    "algorithm.kl_estimator": {
        "kl": "k1",
        "mse": "k2",
        **dict.fromkeys(("low_var_kl", "low_variance"), "k3"),
    },
    "algorithm.kl_controller": {"constant": "fixed", "linear": "scheduled"},
    "schedule": _SCHEDULES,
    "dtype": _DTYPES,
    "model.attention": {
        **dict.fromkeys(
            ("flash_attn", "flash_attention", "flash", "fa2", "flash_attn_2"), "flash_attention_2"
        ),
        "torch": "sdpa",
    },
}
# Losses of other libraries that no choice stands for.
_MISSING = {
    "preference.loss": (
        *("simpo", "orpo", "cpo", "exo_pair", "nca_pair", "bco_pair", "bco", "sppo_hard", "sppo"),
        *("aot", "aot_pair", "aot_unpaired", "apo_zero", "apo_down", "apo_zero_unpaired"),
        *("discopop", "discopo", "wpo", "mpo"),
    ),
    "algorithm.advantage": ("gpg", "grpo_passk", "gdpo", "vtrace", "group_in_group", "gigpo"),
}


def value_hint(key: str, value: Any, setting: Setting) -> str:
    """Words to follow a refused value: the choice that is meant; empty if none is.

    Args:
        key: dotted name of the key.
    """
    if not isinstance(value, str) or not setting.choices:
        return ""
    name = value.strip().lower().replace("-", "_")
    table = FOREIGN_VALUES.get(key) or FOREIGN_VALUES.get(key.rpartition(".")[2], {})
    if meant := table.get(name) or _alike(name, setting.choices):
        return f"; did you mean {meant}?"
    if name in _MISSING.get(key, ()):
        return f"; {value} is not implemented"
    return ""


def _alike(name: str, choices: tuple[Any, ...]) -> str:
    by_name = {str(choice).lower(): str(choice) for choice in choices}
    if name in by_name:  # In other letters: GAE.
        return by_name[name]
    close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.75)
    return by_name[close[0]] if close else ""
