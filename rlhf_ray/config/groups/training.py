"""DeepSpeed roles: learner, critic and reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.config.deepspeed.zero import TrainedZeroConfig, ZeroConfig
from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.config.setting import setting

RL_LEARNING_RATE = 1e-6


@dataclass
class RoleConfig:
    """Settings of every DeepSpeed role: ranks, sharding, number format, resources."""

    num_ranks: int = setting(1, "Processes (one per GPU on a cluster).", minimum=1)
    sequence_parallel_size: int = setting(
        1,
        "Ranks that compute every sample together, each a piece of its tokens (DeepSpeed Ulysses): "
        "a group of neighbouring ranks, on one node. Divides num_ranks; 1 for none.",
        minimum=1,
    )
    tensor_parallel_size: int = setting(
        1,
        "Ranks that hold the matrices of the layers in slices, and compute every sample together "
        "(DeepSpeed AutoTP): a group of neighbouring ranks, on one node. Divides num_ranks and the "
        "heads of the model; 1 for none. Not together with sequence_parallel_size.",
        minimum=1,
    )
    zero_stage: int = setting(
        0,
        "DeepSpeed ZeRO stage: 0 none, 1 optimizer, 2 gradients, 3 parameters sharded.",
        choices=(0, 1, 2, 3),
    )
    dtype: str = setting(
        "bfloat16", "Number format of the weights.", choices=("float32", "bfloat16")
    )
    offload_parameters: bool = setting(False, "Keep parameters in host memory (ZeRO-3).")
    max_tokens_per_micro_batch: int = setting(
        8192,
        "Largest forward pass of one rank, including padding (rows x longest row); with "
        "layout=packed the tokens of a row, a shared prompt counted once, and with layout=varlen "
        "the tokens of all samples. With "
        "sequence_parallel_size a rank holds that share of every row.",
        unit="tokens",
        minimum=1,
    )
    layout: str = setting(
        "auto",
        "Rows of a forward pass: padded, one sample each; packed, several samples, which share "
        "a common prompt; varlen, one row of all samples without padding, for flash_attention_2; "
        "auto, the layout with the lowest estimated cost.",
        choices=("auto", "padded", "packed", "varlen"),
    )
    num_cpus: float = setting(0.5, "Ray CPUs per rank.", unit="CPUs", minimum=0)
    num_gpus: float = setting(
        0.0, "Ray GPUs per rank; 0 runs on the CPU.", unit="GPUs", minimum=0, maximum=1
    )
    cpu_threads: int = setting(2, "Torch threads of a rank.", minimum=1)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    extra_deepspeed_config: dict[str, Any] = setting(
        {},
        "Further keys of DeepSpeed's configuration, merged into the one that is made from the "
        "settings here: zero_optimization.sub_group_size and others.",
    )

    @property
    def ranks_per_sample(self) -> int:
        """Neighbouring ranks that compute every sample together."""
        return self.sequence_parallel_size * self.tensor_parallel_size

    @property
    def num_sample_groups(self) -> int:
        """Groups of ranks that compute samples together; the ranks, without such groups."""
        return self.num_ranks // self.ranks_per_sample

    @property
    def is_one_model(self) -> bool:
        """Whether all ranks of a frozen role hold one model together."""
        return self.zero_stage == 3 or self.tensor_parallel_size > 1

    @property
    def starts_on_first_rank(self) -> bool:
        """Whether rank 0 alone reads the model, and ZeRO-3 shards it tensor by tensor."""
        return self.zero_stage == 3 and self.tensor_parallel_size == 1

    @property
    def max_sample_tokens(self) -> int:
        """Longest sample that fits a forward pass."""
        return self.max_tokens_per_micro_batch * self.sequence_parallel_size

    @property
    def usable_layout(self) -> str:
        """`layout`, with auto replaced by padded where rows are divided over ranks."""
        is_split = self.sequence_parallel_size > 1
        return "padded" if is_split and self.layout == "auto" else self.layout


@dataclass
class TrainingConfig(RoleConfig):
    """The learner: a role with an optimizer."""

    zero: TrainedZeroConfig = field(default_factory=TrainedZeroConfig)
    learning_rate: float | None = setting(
        None,
        "Peak learning rate. null takes the default of the stage: rl 1e-6 (the critic 1e-5), "
        "pretrain 5e-5 (3e-4 with model.random_weights), sft 2e-5, reward_model 1e-5, preference "
        "1e-6; ten times that with lora.",
        minimum=0,
    )
    weight_decay: float = setting(
        0.0, "AdamW weight decay; not applied to biases and norms.", minimum=0
    )
    adam_beta1: float = setting(0.9, "AdamW beta 1.", minimum=0, below=1)
    adam_beta2: float = setting(0.95, "AdamW beta 2.", minimum=0, below=1)
    adam_epsilon: float = setting(1e-8, "AdamW epsilon.", above=0)
    schedule: str = setting(
        "constant", "Learning rate after warm-up.", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = setting(
        0, "Optimiser steps of linear warm-up.", unit="optimiser steps", minimum=0
    )
    min_learning_rate_ratio: float = setting(
        0.0,
        "Final learning rate of linear and cosine, as a share of the peak.",
        minimum=0,
        maximum=1,
    )
    gradient_clip_norm: float = setting(
        1.0, "Largest global gradient norm; 0 does not clip.", minimum=0
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, more time."
    )
    offload_optimizer: bool = setting(False, "Keep optimizer states in host memory (ZeRO 1 to 3).")
    ema_decay: float | None = setting(
        None,
        "Decay of an exponential moving average (EMA) of the policy, updated after every "
        "optimiser step and written to output_dir/model_ema next to output_dir/model; null for "
        "none.",
        above=0,
        below=1,
    )
    freeze_layers: int = setting(
        0,
        "Freeze the input embedding and this many of the first layers; 0 trains all.",
        unit="layers",
        minimum=0,
    )
    freeze: list[str] = setting(
        [],
        "Further weights to freeze: patterns of their names in the model's Hugging Face format, "
        "with * and [0-9] as in a shell: [model.norm.*,*.mlp.*].",
    )
    lora: LoraConfig = field(default_factory=LoraConfig)

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`; that of reinforcement learning in a group that was not loaded.

        A loaded configuration has a number, see `config.by_stage.default_rates`.
        """
        return RL_LEARNING_RATE if self.learning_rate is None else self.learning_rate

    @property
    def trains_all(self) -> bool:
        """Whether every weight of the model is trained."""
        return not (self.lora.is_on or self.freeze or self.freeze_layers)


@dataclass
class CriticConfig(TrainingConfig):
    """The critic, a learner of values. Started only if the algorithm needs it."""

    path: str | None = setting(
        None,
        "Starting weights, of a causal or a scalar-head model; null takes the policy's.",
        is_path=True,
    )


@dataclass
class ReferenceConfig(RoleConfig):
    """The reference, a frozen model. Started only if a KL divergence from it is computed."""

    source: str = setting(
        "auto",
        "own: a separate model; auto: with training.lora and without reference.path, the policy "
        "with its adapter switched off, so that no reference is started.",
        choices=("auto", "own"),
    )
    path: str | None = setting(
        None, "Weights of the reference; null takes the policy's starting weights.", is_path=True
    )
    prompts_at_once: int = setting(
        0,
        "Prompts that are scored together as soon as their samples are there, while others are "
        "still sampled; 0 waits for the batch. The last bits of log-probabilities depend on it.",
        unit="prompts",
        minimum=0,
    )
