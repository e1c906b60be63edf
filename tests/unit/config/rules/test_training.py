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
        "a second copy of weights that are whole",
        ["training.num_ranks=2"],
        ["training.zero.hpz_partition_size=2"],
        ["training.zero.hpz_partition_size=2", "no effect at training.zero_stage=0", "to 3"],
        ["training.zero_stage=3"],
    ),
    (
        "ranks that the second copy does not divide",
        ["training.num_ranks=4", "training.zero_stage=3"],
        ["training.zero.hpz_partition_size=3"],
        ["training.zero.hpz_partition_size=3", "does not divide training.num_ranks=4"],
        ["training.zero.hpz_partition_size=4"],
    ),
    (
        "a second copy in host memory",
        ["training.num_ranks=2", "training.zero_stage=3", "training.zero.hpz_partition_size=2"],
        ["training.offload_parameters=true"],
        ["training.zero.hpz_partition_size=2", "training.offload_parameters=true"],
        ["training.zero.hpz_partition_size=1"],
    ),
    (
        "a bucket of gathered weights at stage 3",
        ["training.zero_stage=3"],
        ["training.zero.allgather_bucket_elements=1000"],
        ["training.zero.allgather_bucket_elements=1000", "set zero_stage to 1 or 2"],
        ["training.zero_stage=2"],
    ),
    (
        "gradients in bfloat16 at stage 1",
        ["training.dtype=bfloat16", "training.zero_stage=1"],
        ["training.zero.gradient_dtype=bfloat16"],
        ["training.zero.gradient_dtype=bfloat16", "training.zero_stage 2 or 3"],
        ["training.zero_stage=3"],
    ),
    (
        "a DeepSpeed key with a setting of its own",
        [],
        ["training.extra_deepspeed_config.gradient_clipping=0.5"],
        ["extra_deepspeed_config.gradient_clipping", "training.gradient_clip_norm"],
        ["training.extra_deepspeed_config={}"],
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
        "colocated and offloaded by DeepSpeed",
        ["placement=colocated", "training.zero_stage=3"],
        ["training.offload_parameters=true"],
        ["training.offload_parameters=true", "placement=colocated", "set it to false"],
        ["training.offload_parameters=false"],
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
