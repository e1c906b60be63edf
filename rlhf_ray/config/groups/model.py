"""The language model that is trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class ModelConfig:
    """Where the policy's starting weights and tokenizer come from."""

    path: str = setting(
        "",
        "A folder in Hugging Face format, a hub name, or builtin:NAME for a tiny model "
        "that the run makes and warms up itself.",
        is_path=True,
    )
    tokenizer_path: str | None = setting(
        None, "Folder or hub name of the tokenizer; the model's own otherwise.", is_path=True
    )
    chat_template: str | None = setting(
        None, "File with a Jinja chat template that replaces the model's own.", is_path=True
    )
    random_weights: bool = setting(
        False,
        "Start from random weights, drawn by `seed`, and not from those of `model.path`, of which "
        "only configuration and tokenizer are read then: pre-training from nothing.",
    )
    attention: str = setting(
        "sdpa",
        "Attention kernel of the learner, critic and reference.",
        choices=("sdpa", "eager", "flash_attention_2"),
    )
    head_kernel: str = setting(
        "auto",
        "What computes log-probabilities from hidden states in learner and reference: chunked, "
        "some rows at a time in torch; liger, Liger-Kernel's fused operator; auto, liger on GPUs "
        "where it can serve the run and gives the same numbers, which its first call looks at.",
        choices=("auto", "chunked", "liger"),
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that the model's repository ships. It is a stranger's code."
    )
