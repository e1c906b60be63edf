"""Rules of the DeepSpeed roles."""

from __future__ import annotations

from rlhf_ray.config.load import load_config
from tests.unit.config.rules.cases import COLOCATED_GPU, GPU, check_broken_values, check_rule, each

CASES = [
    (
        "sharded reward model on a part of a GPU",
        ["reward.model.path=a/b", "reward.model.num_ranks=2", "reward.model.num_gpus=0.5"],
        ["reward.model.zero_stage=3"],
        ["reward.model.num_gpus=0.5", "NCCL"],
        ["reward.model.zero_stage=0"],
    ),
    (
        "groups of ranks that do not divide the ranks",
        ["training.num_ranks=6"],
        ["training.sequence_parallel_size=4"],
        ["training.sequence_parallel_size=4", "training.num_ranks=6", "use 8 ranks"],
        ["training.sequence_parallel_size=3"],
    ),
    (
        "groups of ranks and eager attention",
        ["reference.num_ranks=2", "reference.sequence_parallel_size=2"],
        ["model.attention=eager"],
        ["reference.sequence_parallel_size=2", "model.attention=sdpa"],
        ["model.attention=sdpa"],
    ),
    (
        "groups of ranks and packed rows",
        ["training.num_ranks=2", "training.sequence_parallel_size=2"],
        ["training.layout=packed"],
        ["training.sequence_parallel_size=2", "training.layout=auto"],
        ["training.layout=auto"],
    ),
    (
        "groups of ranks that hold whole reward models",
        ["reward.model.path=a/b", "reward.model.num_ranks=2", "reward.model.zero_stage=3"],
        ["reward.model.sequence_parallel_size=2", "reward.model.zero_stage=0"],
        ["reward.model.sequence_parallel_size=2", "use zero_stage 3"],
        ["reward.model.sequence_parallel_size=2", "reward.model.zero_stage=3"],
    ),
    (
        "groups of ranks beside several engines",
        ["placement=colocated", "training.num_ranks=4", "generation.num_engines=4"],
        ["training.sequence_parallel_size=2"],
        ["training.sequence_parallel_size=2", "generation.num_engines=4", "disaggregated"],
        ["training.sequence_parallel_size=2", "generation.num_engines=2"],
    ),
    (
        "parameter offload",
        [],
        ["training.offload_parameters=true"],
        ["training.offload_parameters=true", "training.zero_stage=3", "not 0"],
        ["training.offload_parameters=true", "training.zero_stage=3"],
    ),
    (
        "parameter offload of the reference",
        [],
        ["reference.offload_parameters=true"],
        ["reference.offload_parameters=true", "reference.zero_stage=3"],
        ["reference.offload_parameters=true", "reference.zero_stage=3"],
    ),
    (
        "optimizer offload",
        [],
        ["training.offload_optimizer=true"],
        ["training.offload_optimizer=true", "1, 2 or 3"],
        ["training.offload_optimizer=true", "training.zero_stage=1"],
    ),
    (
        "stage of the reference",
        [],
        ["reference.zero_stage=2"],
        ["reference.zero_stage=2", "use 0, or 3"],
        ["reference.zero_stage=3"],
    ),
    (
        "part of a GPU and ranks",
        ["training.num_ranks=2"],
        ["training.num_gpus=0.5"],
        ["training.num_gpus=0.5", "training.num_ranks=2"],
        ["training.num_gpus=1"],
    ),
    (
        "flash attention",
        ["algorithm.kl_coefficient=0"],
        ["model.attention=flash_attention_2"],
        ["model.attention=flash_attention_2", "training.num_gpus=0.0", "model.attention=sdpa"],
        ["model.attention=sdpa"],
    ),
    (
        "flash attention of the reference",
        GPU,
        ["model.attention=flash_attention_2", "reference.dtype=float32"],
        ["reference.dtype=float32"],
        ["model.attention=flash_attention_2", "reference.dtype=bfloat16"],
    ),
    (
        "liger on a CPU",
        ["algorithm.kl_coefficient=0"],
        ["model.head_kernel=liger"],
        ["model.head_kernel=liger", "training.num_gpus=0.0", "model.head_kernel=chunked"],
        ["model.head_kernel=chunked"],
    ),
    (
        "liger and a sharded reference",
        [*GPU, "reference.num_gpus=1", "model.head_kernel=liger"],
        ["reference.zero_stage=3"],
        ["model.head_kernel=liger", "reference.zero_stage=3"],
        ["reference.zero_stage=0"],
    ),
    (
        "liger and a part of the vocabulary",
        [*GPU, "reference.num_gpus=1", "model.head_kernel=liger"],
        ["generation.top_k=20"],
        ["model.head_kernel=liger", "generation.top_k=20", "set generation.top_k to 0"],
        ["model.head_kernel=chunked", "generation.top_k=20"],
    ),
    (
        "packed rows with flash attention",
        [*GPU, "model.attention=flash_attention_2"],
        ["reference.layout=packed"],
        ["reference.layout=packed", "flash_attention_2", "layout=varlen", "model.attention=sdpa"],
        ["reference.layout=varlen"],
    ),
    (
        "lengths of samples without flash attention",
        [],
        ["training.layout=varlen"],
        ["training.layout=varlen", "model.attention=sdpa", "layout=packed"],
        ["training.layout=packed"],
    ),
    (
        "colocated and stale",
        ["placement=colocated"],
        ["max_staleness=1"],
        ["max_staleness=1", "placement=disaggregated"],
        ["max_staleness=0"],
    ),
    (
        "colocated on a GPU and a CPU",
        ["placement=colocated"],
        ["training.num_gpus=1"],
        ["generation.num_gpus=0.0", "training.num_gpus=1.0"],
        ["training.num_gpus=0"],
    ),
    (
        "colocated on a part of a GPU",
        COLOCATED_GPU,
        ["training.num_gpus=0.5", "generation.num_gpus=0.5"],
        ["generation.num_gpus=0.5", "to 1"],
        ["training.num_gpus=1", "generation.num_gpus=1"],
    ),
    (
        "colocated devices",
        [*COLOCATED_GPU, "generation.tensor_parallel_size=2", "generation.num_engines=2"],
        ["training.num_ranks=2"],
        ["training.num_ranks=2", "set it to 4", "num_engines=2", "tensor_parallel_size=2"],
        ["training.num_ranks=4"],
    ),
    (
        "colocated stage",
        COLOCATED_GPU,
        ["training.zero_stage=1"],
        ["training.zero_stage=1", "stage 2 or 3"],
        ["training.zero_stage=3"],
    ),
    (
        "average of the critic",
        ["algorithm=ppo"],
        ["critic.ema_decay=0.99"],
        ["critic.ema_decay=0.99", "only the policy", "training.ema_decay"],
        ["training.ema_decay=0.99", "critic.ema_decay=null"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)


def test_roles_that_do_not_run_are_not_held_to_rules():
    idle = ["algorithm.kl_coefficient=0", "reference.zero_stage=2", "reference.num_ranks=1000"]
    load_config(["recipe=demo", *idle, "critic.max_tokens_per_micro_batch=1"])
