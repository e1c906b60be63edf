"""The policy's model."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class ModelConfig:
    """Starting weights and tokenizer of the policy, and the kernels of training."""

    path: str = setting(
        "",
        "A folder in Hugging Face format, a hub name, or builtin:NAME for a tiny model "
        "that the run creates and warms up.",
        is_path=True,
    )
    tokenizer_path: str | None = setting(
        None, "Folder or hub name of the tokenizer; null takes the model's.", is_path=True
    )
    chat_template: str | None = setting(
        None,
        "File with a Jinja chat template that replaces the model's, or the name of one of the "
        "model's templates if it has several.",
        is_path=True,
    )
    template_time: str | None = setting(
        None,
        "Time that a chat template writes if it asks for it (strftime_now), as in "
        "2026-01-31T12:00:00; null takes the start of the run, and that of the checkpoint in a run "
        "that is resumed.",
    )
    random_weights: bool = setting(
        False,
        "Pre-train from random weights, drawn with `seed`; only configuration and tokenizer are "
        "read from `model.path`.",
    )
    attention: str = setting(
        "sdpa",
        "Attention kernel of the learner, critic and reference.",
        choices=("sdpa", "eager", "flash_attention_2"),
    )
    head_kernel: str = setting(
        "auto",
        "Kernel of the log-probabilities in learner and reference: chunked, some rows at a time "
        "in torch; liger, Liger-Kernel's fused operator; auto, liger on GPUs if it supports the "
        "run and its first call gives the same numbers as chunked.",
        choices=("auto", "chunked", "liger"),
    )
    trust_remote_code: bool = setting(
        False, "Run Python code from the model's repository. Only for repositories that you trust."
    )
    max_file_bytes: int = setting(
        5_000_000_000,
        "Largest file of weights of a model that a run writes. A model of several files is written "
        "by all ranks at the same time; a single tensor is never cut.",
        unit="bytes",
        minimum=1024,
    )
