"""Every cross-field rule: what breaks it, what the message says, and that its way out works."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.rules.table import ALL_RULES, cross_field_problems
from rlhf_ray.config.schema import all_keys, group_names

FIT = ["stage=sft", "examples.path=rows.jsonl"]
PREFERENCE = ["stage=preference", "examples.path=rows.jsonl"]
REWARD_MODEL = ["stage=reward_model", "examples.path=rows.jsonl"]
GPU = ["generation=gpu", "training=gpu"]
MIXED = ["algorithm.ptx_coefficient=0.1", "texts.path=texts.jsonl"]
COLOCATED_GPU = ["placement=colocated", *GPU]

# (name, overrides on top of recipe=demo that are fine, what breaks the rule, fragments of the
# message, what the message says to do)
CASES = [
    ("no model", [], ["model.path="], ["model.path is empty", "recipe=demo"], ["model.path=a/b"]),
    ("no data", [], ["data.path="], ["data.path is empty"], ["data.path=rows.jsonl"]),
    (
        "no reward",
        [],
        ["reward.functions=[]"],
        ["reward.functions is empty", "[exact_match]"],
        ["reward.functions=[length]"],
    ),
    (
        "only watched",
        ["reward.model.path=a/b"],
        ["reward.functions=[]", "reward.model.weight=0"],
        ["every part of the reward has weight 0"],
        ["reward.functions=[]"],
    ),
    (
        "name of the reward model's part",
        ["reward.model.path=a/b"],
        ["reward.model.name=exact_match"],
        ["reward.functions[0] and reward.model are both named 'exact_match'"],
        ["reward.model.name=taste"],
    ),
    (
        "reserved name of the reward model's part",
        ["reward.model.path=a/b"],
        ["reward.model.name=std"],
        ["reward.model.name is 'std'", "reward/std"],
        ["reward.model.name=model"],
    ),
    (
        "half a normalisation",
        ["reward.model.path=a/b"],
        ["reward.model.standard_deviation=2"],
        ["reward.model.standard_deviation=2", "mean and standard_deviation"],
        ["reward.model.standard_deviation=2", "reward.model.mean=0.5"],
    ),
    (
        "moments of nothing",
        ["reward.model.path=a/b", "reward.model.mean=1", "reward.model.standard_deviation=2"],
        ["reward.model.normalize=false"],
        ["reward.model.normalize=false", "reward.model.mean=1"],
        ["reward.model.normalize=true"],
    ),
    (
        "stage of the reward model",
        ["reward.model.path=a/b"],
        ["reward.model.zero_stage=2"],
        ["reward.model.zero_stage=2", "use 0", "or 3"],
        ["reward.model.zero_stage=3"],
    ),
    (
        "reward model's budget",
        ["reward.model.path=a/b"],
        ["reward.model.max_tokens_per_micro_batch=37"],
        ["reward.model.max_tokens_per_micro_batch=37", "at least 38"],
        ["reward.model.max_tokens_per_micro_batch=38"],
    ),
    (
        "sharded reward model on a part of a GPU",
        ["reward.model.path=a/b", "reward.model.num_ranks=2", "reward.model.num_gpus=0.5"],
        ["reward.model.zero_stage=3"],
        ["reward.model.num_gpus=0.5", "NCCL"],
        ["reward.model.zero_stage=0"],
    ),
    (
        "reward entry",
        [],
        ["reward.functions=[{path:length,wight:1}]"],
        ["reward.functions[0]", "'wight'", "'weight'"],
        ["reward.functions=[{path:length,weight:1}]"],
    ),
    (
        "answer column",
        [],
        ["data.answer_column=null"],
        ["data.answer_column=null", "exact_match"],
        ["data.answer_column=answer"],
    ),
    ("output", [], ["output_dir="], ["output_dir is empty"], ["output_dir=x"]),
    ("store", [], ["output_dir=s3://a/b"], ["output_dir=s3://a/b", "folder"], ["output_dir=/b"]),
    ("resume", [], ["resume="], ["resume is empty", "auto or never"], ["resume=never"]),
    (
        "request deadline",
        [],
        ["deadlines.request_s=700"],
        ["deadlines.request_s=700.0", "deadlines.generate_s=600.0"],
        ["deadlines.request_s=600"],
    ),
    (
        "reward deadline",
        [],
        ["reward.timeout_s=700"],
        ["reward.timeout_s=700.0", "deadlines.generate_s=600.0"],
        ["reward.timeout_s=600"],
    ),
    (
        "learner budget",
        [],
        ["training.max_tokens_per_micro_batch=37"],
        ["training.max_tokens_per_micro_batch=37", "32", "6", "at least 38"],
        ["training.max_tokens_per_micro_batch=38"],
    ),
    (
        "critic budget",
        ["algorithm=ppo"],
        ["critic.max_tokens_per_micro_batch=37"],
        ["critic.max_tokens_per_micro_batch=37", "at least 38"],
        ["critic.max_tokens_per_micro_batch=38"],
    ),
    (
        "reference budget",
        [],
        ["reference.max_tokens_per_micro_batch=37"],
        ["reference.max_tokens_per_micro_batch=37", "at least 38"],
        ["reference.max_tokens_per_micro_batch=38"],
    ),
    (
        "mini-batches",
        [],
        ["algorithm.num_mini_batches=129"],
        ["algorithm.num_mini_batches=129", "128 samples", "prompts_per_step=16"],
        ["algorithm.num_mini_batches=128"],
    ),
    (
        "learner ranks",
        ["algorithm.num_mini_batches=32"],
        ["training.num_ranks=5"],
        ["training.num_ranks=5", "only 4 samples", "at most 4"],
        ["training.num_ranks=4"],
    ),
    (
        "critic ranks",
        ["algorithm=ppo", "algorithm.num_mini_batches=32"],
        ["critic.num_ranks=5"],
        ["critic.num_ranks=5", "at most 4"],
        ["critic.num_ranks=4"],
    ),
    (
        "reference ranks",
        [],
        ["reference.num_ranks=129"],
        ["reference.num_ranks=129", "at most 128"],
        ["reference.num_ranks=128"],
    ),
    (
        "engines",
        ["max_staleness=1"],
        ["generation.num_engines=33"],
        ["generation.num_engines=33", "at most 32 prompts"],
        ["generation.num_engines=32"],
    ),
    (
        "group of one",
        [],
        ["samples_per_prompt=1"],
        ["samples_per_prompt=1", "at least 2", "algorithm=ppo"],
        ["samples_per_prompt=2"],
    ),
    (
        "part of the vocabulary: top_p",
        [],
        ["generation.top_p=0.9"],
        ["generation.top_p=0.9", "generation.top_k", "from 1 to 1024", "top_p to 1"],
        ["generation.top_p=0.9", "generation.top_k=1024"],
    ),
    (
        "part of the vocabulary: min_p",
        [],
        ["generation.min_p=0.05"],
        ["generation.min_p=0.05", "generation.top_k", "from 1 to 1024", "min_p to 0"],
        ["generation.min_p=0.05", "generation.top_k=1"],
    ),
    (
        "least length",
        ["generation.top_k=20"],
        ["generation.min_response_tokens=2"],
        ["generation.min_response_tokens=2", "set it to 0"],
        ["generation.min_response_tokens=0"],
    ),
    (
        "critic steps without a critic",
        [],
        ["algorithm.critic_warmup_steps=3"],
        ["algorithm.critic_warmup_steps=3", "advantage=group", "algorithm=ppo"],
        ["algorithm.critic_warmup_steps=0"],
    ),
    (
        "engine step and sample",
        ["generation.max_num_seqs=16"],
        ["generation.max_num_batched_tokens=37"],
        ["generation.max_num_batched_tokens=37", "at least 38"],
        ["generation.max_num_batched_tokens=38"],
    ),
    (
        "engine step and sequences",
        [],
        ["generation.max_num_batched_tokens=127"],
        ["generation.max_num_batched_tokens=127", "max_num_seqs=128"],
        ["generation.max_num_batched_tokens=128"],
    ),
    ("stop", [], ["generation.stop=['']"], ["generation.stop", "empty"], ["generation.stop=[a]"]),
    (
        "cache",
        [],
        ["generation.kv_cache_gib=null"],
        ["generation.kv_cache_gib=null", "set it"],
        ["generation.kv_cache_gib=1"],
    ),
    (
        "part of a GPU and ranks of an engine",
        ["generation.tensor_parallel_size=2"],
        ["generation.num_gpus=0.5"],
        ["generation.num_gpus=0.5", "tensor_parallel_size=2"],
        ["generation.num_gpus=1"],
    ),
    (
        "number of log-probabilities",
        [],
        ["generation.extra_engine_args.max_logprobs=9"],
        ["generation.extra_engine_args.max_logprobs", "generation.top_k"],
        ["generation.top_k=9"],
    ),
    (
        "engine argument",
        [],
        ["generation.extra_engine_args.max-model-len=9"],
        ["generation.extra_engine_args.max-model-len", "data.max_prompt_tokens"],
        ["generation.extra_engine_args={block_size:32}"],
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
        ["reference.layout=packed", "flash_attention_2", "layout=auto", "model.attention=sdpa"],
        ["reference.layout=auto"],
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
        "adaptive from nothing",
        ["algorithm.kl_coefficient=0"],
        ["algorithm.kl_controller=adaptive"],
        ["algorithm.kl_coefficient=0", "kl_controller=fixed"],
        ["algorithm.kl_controller=adaptive", "algorithm.kl_coefficient=0.05"],
    ),
    (
        "k1 in the loss",
        [],
        ["algorithm.kl_estimator=k1"],
        ["algorithm.kl_estimator=k1", "k2 or k3", "kl_placement=reward"],
        ["algorithm.kl_estimator=k1", "algorithm.kl_placement=reward"],
    ),
    (
        "k1 in the loss, later",
        ["algorithm.kl_coefficient=0", "algorithm.kl_final=0.1"],
        ["algorithm.kl_estimator=k1", "algorithm.kl_controller=scheduled"],
        ["algorithm.kl_estimator=k1", "kl_gradient=unbiased"],
        ["algorithm.kl_gradient=unbiased"],
    ),
    (
        "a KL of the whole vocabulary",
        [],
        ["algorithm.kl_estimator=full"],
        ["algorithm.kl_estimator=full", "generation.top_k=0", "set generation.top_k"],
        ["algorithm.kl_estimator=full", "generation.top_k=20"],
    ),
    (
        "a KL of whole distributions in the reward",
        ["generation.top_k=20", "algorithm.kl_placement=reward"],
        ["algorithm.kl_estimator=full"],
        ["algorithm.kl_estimator=full", "kl_placement=reward", "or k1"],
        ["algorithm.kl_estimator=full", "algorithm.kl_placement=loss"],
    ),
    (
        "average of the critic",
        ["algorithm=ppo"],
        ["critic.ema_decay=0.99"],
        ["critic.ema_decay=0.99", "only the policy", "training.ema_decay"],
        ["training.ema_decay=0.99", "critic.ema_decay=null"],
    ),
    (
        "no reference to move",
        [],
        ["algorithm.reference_every=5", "algorithm.kl_coefficient=0"],
        ["algorithm.reference_every=5", "kl_coefficient above 0", "reference_every to 0"],
        ["algorithm.reference_every=5", "algorithm.kl_coefficient=0.05"],
    ),
    (
        "no reference to move now, but later",
        ["algorithm.kl_final=0.1", "algorithm.reference_every=5", "algorithm.kl_coefficient=0.05"],
        ["algorithm.kl_coefficient=0"],
        ["algorithm.reference_every=5", "kl_coefficient above 0"],
        ["algorithm.kl_coefficient=0", "algorithm.kl_controller=scheduled"],
    ),
    (
        "average of a reference that stays",
        ["algorithm.kl_coefficient=0.05"],
        ["algorithm.reference_decay=0.9"],
        ["algorithm.reference_decay=0.9", "algorithm.reference_every=0", "reference_decay to 0"],
        ["algorithm.reference_decay=0.9", "algorithm.reference_every=1"],
    ),
    (
        "success rates with a penalty",
        ["algorithm.advantage=maxrl", "algorithm.kl_coefficient=0.1"],
        ["algorithm.kl_placement=reward"],
        ["algorithm.kl_placement=reward", "maxrl", "kl_placement=loss"],
        ["algorithm.kl_placement=loss"],
    ),
    (
        "steps with a penalty on tokens",
        ["algorithm.advantage=process", "algorithm.kl_coefficient=0.1"],
        ["algorithm.kl_placement=reward"],
        ["algorithm.kl_placement=reward", "process", "kl_placement=loss"],
        ["algorithm.kl_placement=loss"],
    ),
    (
        "steps with a clipped total",
        ["algorithm.reward_clip=5"],
        ["algorithm.advantage=process"],
        ["algorithm.reward_clip=5", "process", "null"],
        ["algorithm.advantage=process", "algorithm.reward_clip=null"],
    ),
    (
        "a level of steps for whole answers",
        [],
        ["algorithm.reward_level=step"],
        ["algorithm.reward_level=step", "algorithm.advantage=group", "use returns"],
        ["algorithm.reward_level=step", "algorithm.advantage=returns"],
    ),
    (
        "steps of one sample",
        [],
        ["algorithm.advantage=process", "samples_per_prompt=1"],
        ["samples_per_prompt=1", "algorithm.advantage=process", "algorithm=ppo"],
        ["samples_per_prompt=2"],
    ),
    (
        "group of one, leave one out",
        [],
        ["algorithm.advantage=rloo", "samples_per_prompt=1"],
        ["samples_per_prompt=1", "algorithm.advantage=rloo", "algorithm=ppo"],
        ["samples_per_prompt=2"],
    ),
    (
        "token surrogate of sequences",
        ["algorithm.ratio_level=sequence"],
        ["algorithm.policy_loss=gmpo"],
        ["algorithm.ratio_level=sequence", "policy_loss=gmpo", "policy_loss=clip"],
        ["algorithm.ratio_level=token"],
    ),
    (
        "dual clip without a clip",
        ["algorithm.policy_loss=cispo"],
        ["algorithm.dual_clip=3"],
        ["algorithm.dual_clip=3", "policy_loss=cispo"],
        ["algorithm.policy_loss=clip"],
    ),
    (
        "dual clip inside the clip",
        ["algorithm.clip_ratio_high=0.3"],
        ["algorithm.dual_clip=1.2"],
        ["algorithm.dual_clip=1.2", "1.3"],
        ["algorithm.dual_clip=1.5"],
    ),
    (
        "covariance bounds",
        ["algorithm.policy_loss=clip_cov"],
        ["algorithm.covariance_low=6"],
        ["algorithm.covariance_low=6", "algorithm.covariance_high=5"],
        ["algorithm.covariance_high=7"],
    ),
    (
        "filter without room",
        ["algorithm.correction_filter=token"],
        ["algorithm.correction_low=3"],
        ["algorithm.correction_low=3", "algorithm.correction_high=2"],
        ["algorithm.correction_low=0.5"],
    ),
    (
        "rejection without a filter",
        [],
        ["algorithm.correction_reject=true"],
        ["algorithm.correction_reject=true", "correction_filter=none"],
        ["algorithm.correction_filter=geometric"],
    ),
    (
        "gap counted twice",
        ["algorithm.correction_weight=token"],
        ["algorithm.old_policy=generator"],
        ["algorithm.old_policy=generator", "old_policy=learner", "correction_weight=none"],
        ["algorithm.old_policy=learner"],
    ),
    (
        "bootstrap without a critic",
        [],
        ["algorithm.bootstrap_truncated=true"],
        ["algorithm.bootstrap_truncated=true", "advantage=group", "algorithm=ppo"],
        ["algorithm.advantage=gae"],
    ),
    *(
        (
            f"normalised rewards, {name}",
            base,
            ["algorithm.reward_normalization=running"],
            ["algorithm.reward_normalization=running", *said],
            repair,
        )
        for name, base, said, repair in (
            (
                "undone",
                [],
                ["normalize_by_std=true", "none or false"],
                ["algorithm.reward_normalization=batch", "algorithm.normalize_by_std=false"],
            ),
            (
                "of steps",
                ["algorithm=process"],
                ["advantage=process", "in the reward function"],
                ["algorithm.reward_normalization=none"],
            ),
            (
                "of steps with a critic",
                ["algorithm=ppo", "algorithm.reward_level=step"],
                ["reward_level=step"],
                ["algorithm.reward_normalization=none"],
            ),
            (
                "negative",
                ["algorithm=maxrl"],
                ["advantage=maxrl", "negative"],
                ["algorithm.reward_normalization=none"],
            ),
            (
                "moving mean",
                ["algorithm=reinforce"],
                ["advantage=baseline", "advantage=returns"],
                ["algorithm.reward_normalization=running", "algorithm.advantage=returns"],
            ),
        )
    ),
    (
        "whitening per task alone",
        [],
        ["algorithm.whiten_per_task=true"],
        ["algorithm.whiten_per_task=true", "whiten_advantages=false"],
        ["algorithm.whiten_advantages=true"],
    ),
    (
        "dynamic sampling of groups of one",
        ["algorithm=ppo", "samples_per_prompt=1"],
        ["sampling.dynamic=true"],
        ["sampling.dynamic=true", "samples_per_prompt=1", "at least 2"],
        ["sampling.dynamic=true", "samples_per_prompt=2"],
    ),
    (
        "over-sampling and exact resume",
        ["checkpoint.every_steps=5"],
        ["sampling.oversample=1.5"],
        ["sampling.oversample=1.5", "checkpoint.every_steps=5", "sampling.exact_resume=false"],
        ["sampling.oversample=1.5", "sampling.exact_resume=false"],
    ),
    (
        "replay and exact resume",
        ["checkpoint.every_steps=5"],
        ["sampling.replay_groups_per_step=2"],
        ["sampling.replay_groups_per_step=2", "not in a checkpoint", "sampling.exact_resume=false"],
        ["sampling.replay_groups_per_step=2", "max_staleness=1"],
    ),
    (
        "over-long buffer",
        [],
        ["sampling.overlong_buffer_tokens=6"],
        ["sampling.overlong_buffer_tokens=6", "max_response_tokens=6", "at most 5"],
        ["sampling.overlong_buffer_tokens=5"],
    ),
    (
        "nothing ends by itself",
        ["generation.ignore_eos=true"],
        ["sampling.overlong_filter=true"],
        ["sampling.overlong_filter=true", "generation.ignore_eos=true"],
        ["sampling.overlong_filter=false"],
    ),
    (
        "negative task weight",
        ["data.source_column=task"],
        ["sampling.task_weights.sums=-1"],
        ["sampling.task_weights.sums=-1.0", "at least 0"],
        ["sampling.task_weights.sums=0"],
    ),
    (
        "task weights without tasks",
        [],
        ["sampling.task_weights={sums:2}"],
        ["sampling.task_weights={'sums': 2.0}", "data.source_column"],
        ["sampling.task_weights={sums:2}", "data.source_column=task"],
    ),
    (
        "replay and several steps",
        ["algorithm.num_epochs=2"],
        ["sampling.replay_groups_per_step=2"],
        ["sampling.replay_groups_per_step=2", "algorithm.num_epochs=2", "set both to 1"],
        ["sampling.replay_groups_per_step=2", "algorithm.num_epochs=1"],
    ),
    (
        "replay of what is too old",
        ["max_staleness=4"],
        ["sampling.replay_groups_per_step=2"],
        ["sampling.replay_max_staleness=4", "max_staleness=4", "at least 5"],
        ["sampling.replay_groups_per_step=2", "sampling.replay_max_staleness=5"],
    ),
    (
        "replay of more than there is",
        [],
        ["sampling.replay_groups_per_step=65"],
        ["sampling.replay_capacity=64", "sampling.replay_groups_per_step=65"],
        ["sampling.replay_groups_per_step=65", "sampling.replay_capacity=65"],
    ),
    (
        "coefficient without texts",
        [],
        ["algorithm.ptx_coefficient=0.5"],
        ["texts.path is empty", "algorithm.ptx_coefficient=0.5", "as in texts.path=texts.jsonl"],
        ["algorithm.ptx_coefficient=0.5", "texts.path=texts.jsonl"],
    ),
    (
        "texts without a coefficient",
        [],
        ["texts.path=a.jsonl"],
        ["texts.path=a.jsonl", "nothing would be learnt", "as in algorithm.ptx_coefficient=0.1"],
        ["texts.path=a.jsonl", "algorithm.ptx_coefficient=0.1"],
    ),
    (
        "text over the budget",
        MIXED,
        ["texts.max_tokens=9000"],
        ["texts.max_tokens=9000", "training.max_tokens_per_micro_batch=8192", "at most 8192"],
        ["texts.max_tokens=9000", "training.max_tokens_per_micro_batch=9000"],
    ),
    (
        "ranks without a text",
        [*MIXED, "training.num_ranks=4"],
        ["texts.texts_per_step=3"],
        ["texts.texts_per_step=3", "training.num_ranks=4", "raise it to at least 4"],
        ["texts.texts_per_step=4"],
    ),
    (
        "no model to learn with",
        FIT,
        ["model.path="],
        ["model.path is empty", "stage=pretrain"],
        ["model.path=a/b"],
    ),
    (
        "no examples",
        FIT,
        ["examples.path="],
        ["examples.path is empty", "stage=sft", "stage=prepare_data"],
        ["examples.path=rows.jsonl"],
    ),
    (
        "random weights in a later stage",
        FIT,
        ["model.random_weights=true"],
        ["model.random_weights=true", "stage=sft", "use stage=pretrain"],
        ["model.random_weights=true", "stage=pretrain"],
    ),
    (
        "budget of examples",
        FIT,
        ["training.max_tokens_per_micro_batch=99", "examples.max_tokens=100"],
        ["training.max_tokens_per_micro_batch=99", "examples.max_tokens", "at least 100"],
        ["training.max_tokens_per_micro_batch=100", "examples.max_tokens=100"],
    ),
    (
        "ranks without examples",
        FIT,
        ["training.num_ranks=17"],
        ["training.num_ranks=17", "fit.samples_per_step", "at most 16 ranks"],
        ["training.num_ranks=17", "fit.samples_per_step=17"],
    ),
    (
        "patience without evaluations",
        FIT,
        ["fit.patience=2"],
        ["fit.patience=2", "fit.eval_every=0"],
        ["fit.patience=2", "fit.eval_every=5"],
    ),
    (
        "patience without held-out rows",
        [*FIT, "fit.eval_every=5"],
        ["fit.patience=2", "examples.eval_share=0"],
        ["fit.patience=2", "examples.eval_share=0", "examples.eval_path"],
        ["fit.patience=2", "examples.eval_share=0", "examples.eval_path=held_out.jsonl"],
    ),
    (
        "label smoothing of a loss without it",
        [*PREFERENCE, "preference.label_smoothing=0.1"],
        ["preference.loss=ipo"],
        ["preference.label_smoothing=0.1", "preference.loss=ipo", "sigmoid or robust"],
        ["preference.loss=robust"],
    ),
    (
        "length of answers without rankings",
        [*PREFERENCE, "preference.divide_by_length=true"],
        ["preference.loss=kto"],
        ["preference.divide_by_length=true", "preference.loss=kto", "set it to false"],
        ["preference.divide_by_length=false"],
    ),
    (
        "likelihood of best answers without rankings",
        [*PREFERENCE, "preference.sft_coefficient=0.5"],
        ["preference.loss=kto"],
        ["preference.sft_coefficient=0.5", "preference.loss=kto", "set it to 0"],
        ["preference.sft_coefficient=0"],
    ),
    (
        "weights of feedback on rankings",
        PREFERENCE,
        ["preference.undesirable_weight=2"],
        ["preference.undesirable_weight=2", "preference.loss=sigmoid", "preference.loss=kto"],
        ["preference.undesirable_weight=2", "preference.loss=kto"],
    ),
    (
        "budget of rankings",
        [*PREFERENCE, "examples.max_tokens=100"],
        ["training.max_tokens_per_micro_batch=199"],
        ["training.max_tokens_per_micro_batch=199", "100 tokens each", "at least 200"],
        ["training.max_tokens_per_micro_batch=200"],
    ),
    (
        "one sample of feedback a step",
        [*PREFERENCE, "preference.loss=kto"],
        ["fit.samples_per_step=1"],
        ["fit.samples_per_step=1", "preference.loss=kto", "at least 2"],
        ["fit.samples_per_step=2"],
    ),
    (
        "budget of pairs",
        [*REWARD_MODEL, "examples.max_tokens=100"],
        ["training.max_tokens_per_micro_batch=199"],
        ["training.max_tokens_per_micro_batch=199", "examples.max_tokens", "at least 200"],
        ["training.max_tokens_per_micro_batch=200"],
    ),
    (
        "average of a reward model",
        REWARD_MODEL,
        ["training.ema_decay=0.9"],
        ["training.ema_decay=0.9", "stage=reward_model", "to null"],
        ["training.ema_decay=null"],
    ),
    (
        "held out in two ways",
        ["examples.path=a.jsonl", "examples.eval_path=b.jsonl"],
        ["examples.eval_share=0.1"],
        ["examples.eval_share=0.1", "examples.eval_path=b.jsonl", "to null"],
        ["examples.eval_share=null"],
    ),
    (
        "split and share",
        ["examples.path=a/b", "examples.eval_split=test"],
        ["examples.eval_share=0.1"],
        ["examples.eval_share=0.1", "examples.eval_split=test"],
        ["examples.eval_share=0"],
    ),
    (
        "held out what is trained on",
        ["examples.path=a.jsonl"],
        ["examples.eval_path=a.jsonl"],
        ["examples.eval_path=a.jsonl", "trained on", "examples.eval_share"],
        ["examples.eval_path=b.jsonl"],
    ),
    (
        "held out the split that is trained on",
        ["examples.path=a/b", "examples.split=all"],
        ["examples.eval_split=all"],
        ["examples.eval_split=all", "trained on"],
        ["examples.eval_path=a/b", "examples.eval_split=test"],
    ),
    (
        "columns that are one",
        ["examples.chosen_column=best"],
        ["examples.rejected_column=best"],
        ["examples.rejected_column=best", "also examples.chosen_column"],
        ["examples.rejected_column=worst"],
    ),
    (
        "adapter and frozen weights",
        ["training.lora.r=8"],
        ["training.freeze_layers=1"],
        ["training.lora.r=8", "training.freeze=[]", "training.freeze_layers=1", "training.lora.r"],
        ["training.lora.r=0", "training.freeze_layers=1"],
    ),
    (
        "adapter of nothing",
        ["algorithm=ppo", "critic.lora.r=8"],
        ["critic.lora.target_modules=[]"],
        ["critic.lora.target_modules=[]", "all-linear"],
        ["critic.lora.target_modules=[all-linear]"],
    ),
    (
        "adapter that is averaged",
        ["training.ema_decay=0.9"],
        ["training.lora.r=8"],
        ["training.ema_decay=0.9", "training.lora.r=8", "to null"],
        ["training.lora.r=8", "training.ema_decay=null"],
    ),
    (
        "adapter on random weights",
        ["stage=pretrain", "examples.path=rows.jsonl", "model.random_weights=true"],
        ["training.lora.r=8"],
        ["model.random_weights=true", "training.lora.r to 0"],
        ["training.lora.r=0"],
    ),
    (
        "frozen random weights",
        ["stage=pretrain", "examples.path=rows.jsonl", "model.random_weights=true"],
        ["training.freeze=[model.norm.*]"],
        ["model.random_weights=true", "training.freeze to []"],
        ["training.freeze=[]"],
    ),
    (
        "adapter that is not there to publish",
        [],
        ["publish.lora=adapter"],
        ["publish.lora=adapter", "training.lora.r=0", "merged"],
        ["publish.lora=adapter", "training.lora.r=512"],
    ),
    (
        "adapter too large to publish",
        ["publish.lora=adapter", "training.lora.r=512"],
        ["training.lora.r=513"],
        ["training.lora.r=513", "rank of 512", "merged"],
        ["publish.lora=merged", "training.lora.r=513"],
    ),
    (
        "adapter whose reference is to move",
        ["training.lora.r=8"],
        ["algorithm.reference_every=1"],
        ["algorithm.reference_every=1", "training.lora.r=8", "reference.source to own"],
        ["algorithm.reference_every=1", "reference.source=own"],
    ),
    (
        "adapter on shared GPUs",
        [*COLOCATED_GPU, "training.zero_stage=2"],
        ["training.lora.r=8"],
        ["placement=colocated", "training.lora.r=8", "disaggregated"],
        ["training.lora.r=8", "placement=disaggregated"],
    ),
]
PREPARE = ["stage=prepare_data", "prepare.sources.a={path:a.jsonl,kind:preference}"]
PREPARE_CASES = [
    ("no sources", ["stage=prepare_data"], [], ["prepare.sources is empty"], PREPARE),
    (
        "source without a kind",
        PREPARE,
        ["prepare.sources.b.path=b.jsonl"],
        ["prepare.sources.b: neither kind nor layout", "preference", "openassistant"],
        ["prepare.sources.b.path=b.jsonl", "prepare.sources.b.layout=gsm8k"],
    ),
    (
        "unknown layout",
        PREPARE,
        ["prepare.sources.a.layout=hh_rlfh"],
        ["prepare.sources.a.layout=hh_rlfh", "did you mean hh_rlhf?"],
        ["prepare.sources.a.layout=hh_rlhf"],
    ),
    (
        "unknown key of a source",
        PREPARE,
        ["prepare.sources.a.wieght=2"],
        ["prepare.sources.a.wieght: unknown key", "did you mean weight?"],
        ["prepare.sources.a.weight=2"],
    ),
    (
        "unknown column",
        PREPARE,
        ["prepare.sources.a.columns={chosn:better}"],
        ["prepare.sources.a.columns.chosn", "did you mean chosen?"],
        ["prepare.sources.a.columns={chosen:better}"],
    ),
    (
        "evaluation set",
        PREPARE,
        ["prepare.evaluation_sets.exam.kind=prompt"],
        ["prepare.evaluation_sets.exam.path is not set"],
        ["prepare.evaluation_sets.exam={path:exam.jsonl,kind:prompt}"],
    ),
    (
        "a kind that a layout does not give",
        PREPARE,
        ["prepare.sources.a.layout=alpaca"],
        ["prepare.sources.a.kind=preference", "alpaca gives demonstration, prompt"],
        ["prepare.sources.a.layout=alpaca", "prepare.sources.a.kind=prompt"],
    ),
    (
        "some weights",
        [*PREPARE, "prepare.sources.b.path=b.txt"],
        ["prepare.sources.b.weight=1"],
        ["prepare.sources.a.weight is not set", "of every source, or of none"],
        ["prepare.sources.b.weight=1", "prepare.sources.a.weight=3"],
    ),
    (
        "a total without weights",
        PREPARE,
        ["prepare.total_samples=10"],
        ["prepare.total_samples=10", "prepare.sources.a.weight"],
        ["prepare.total_samples=10", "prepare.sources.a.weight=1"],
    ),
    (
        "shares of two stages",
        PREPARE,
        ["prepare.split=[1,1]"],
        ["prepare.split=[1.0, 1.0]", "sft, reward_model, rl", "[2,4,4]"],
        ["prepare.split=[1,1,0]"],
    ),
    (
        "a stage that a source is no use to",
        [*PREPARE, "prepare.sources.b={path:b.jsonl,kind:demonstration}"],
        ["prepare.split=[1,1,1]"],
        ["prepare.sources.b", "reward_model", "kind=demonstration cannot become"],
        ["prepare.split=[1,1,1]", "prepare.sources.b.split=[1,0,0]"],
    ),
    (
        "shares of a source alone",
        PREPARE,
        ["prepare.sources.a.split=[1,0,0]"],
        ["prepare.sources.a.split=[1.0, 0.0, 0.0]", "needs prepare.split"],
        ["prepare.sources.a.split=[1,0,0]", "prepare.split=[2,4,4]"],
    ),
    (
        "no length fits",
        PREPARE,
        ["prepare.min_characters=9", "prepare.max_characters=8"],
        ["prepare.min_characters=9", "prepare.max_characters=8"],
        ["prepare.min_characters=8", "prepare.max_characters=8"],
    ),
    (
        "tokens without a tokenizer",
        PREPARE,
        ["prepare.max_tokens=9"],
        ["prepare.max_tokens=9", "model.path"],
        ["prepare.max_tokens=9", "model.path=builtin:arithmetic"],
    ),
    (
        "a checkpoint of the data stage",
        PREPARE,
        ["resume=some/folder"],
        ["some/folder: stage=prepare_data has no checkpoints", "auto"],
        ["resume=never"],
    ),
]
PIPELINE = ["stage=pipeline", "pipeline.stages.a={stage: sft}"]
PIPELINE_CASES = [
    (
        "no stages",
        ["stage=pipeline"],
        [],
        ["pipeline.stages is empty", "recipe=pipeline_demo"],
        PIPELINE,
    ),
    (
        "folder of a later stage",
        PIPELINE,
        ["pipeline.stages.a.model.path='{b}/model'"],
        ["pipeline.stages.a.model.path={b}/model: there is no stage 'b' before this one"],
        ["pipeline.stages.b={stage: sft, model.path: '{a}/model'}"],
    ),
    (
        "figure of no stage",
        PIPELINE,
        ["pipeline.report.loss=b:loss_last"],
        ["pipeline.report.loss=b:loss_last: must be STAGE:PATH with one of the stages a"],
        ["pipeline.report.loss=a:loss_last"],
    ),
    (
        "a checkpoint of a pipeline",
        PIPELINE,
        ["resume=some/folder"],
        ["some/folder: a pipeline goes on where it stopped", "auto or never"],
        ["resume=never"],
    ),
]
SERVE = ["stage=serve_reward", "reward.model.path=a/b"]
SERVE_CASES = [
    (
        "nothing to serve",
        ["stage=serve_reward"],
        [],
        ["reward.model.path=null", "stage=reward_model has written"],
        SERVE,
    ),
    (
        "a served model on ranks",
        SERVE,
        ["reward.model.num_ranks=2"],
        ["reward.model.num_ranks=2", "set them to 1 and 0"],
        ["reward.model.num_ranks=1"],
    ),
    (
        "everybody may ask",
        SERVE,
        ["serve.host=0.0.0.0"],
        ["serve.host=0.0.0.0", "serve.token_variable=null"],
        ["serve.host=0.0.0.0", "serve.token_variable=TOKEN"],
    ),
    (
        "half of a normalisation that is served",
        SERVE,
        ["reward.model.mean=1"],
        ["reward.model.mean=1", "standard_deviation"],
        ["reward.model.mean=1", "reward.model.standard_deviation=2"],
    ),
]
CHAT_MODEL = ["stage=serve", "model.path=a/b"]
SERVE_CASES += [
    ("no model to serve", ["stage=serve"], [], ["model.path is empty", "`model`"], CHAT_MODEL),
    (
        "everybody may ask a language model",
        CHAT_MODEL,
        ["serve.host=0.0.0.0"],
        ["serve.host=0.0.0.0", "serve.token_variable=null"],
        ["serve.host=0.0.0.0", "serve.token_variable=KEY"],
    ),
    (
        "replicas as they are needed, on one machine",
        CHAT_MODEL,
        ["serve.max_replicas=2"],
        ["serve.max_replicas=2", "serve.backend=ray_serve"],
        ["serve.max_replicas=2", "serve.backend=ray_serve"],
    ),
    (
        "fewer replicas at the busiest",
        [*CHAT_MODEL, "serve.backend=ray_serve"],
        ["serve.replicas=3", "serve.max_replicas=2"],
        ["serve.max_replicas=2", "less than serve.replicas=3"],
        ["serve.replicas=2", "serve.max_replicas=2"],
    ),
    (
        "an argument of a server that has a key",
        CHAT_MODEL,
        ["generation.extra_engine_args.max_model_len=64"],
        ["extra_engine_args.max_model_len: is decided by serve.max_model_tokens"],
        ["serve.max_model_tokens=64", "generation.extra_engine_args.max_logprobs=5"],
    ),
    (
        "all memory for a server",
        CHAT_MODEL,
        ["generation.kv_cache_gib=null"],
        ["generation.kv_cache_gib=null", "generation.num_gpus=0"],
        ["generation.kv_cache_gib=1"],
    ),
    (
        "a server with parts of GPUs",
        [*CHAT_MODEL, "generation=gpu"],
        ["generation.num_gpus=0.5", "generation.tensor_parallel_size=2"],
        ["generation.num_gpus=0.5", "tensor_parallel_size to 1"],
        ["generation.num_gpus=0.5"],
    ),
    (
        "a step of a server too small",
        CHAT_MODEL,
        ["generation.max_num_batched_tokens=64"],
        ["generation.max_num_batched_tokens=64", "at least 256"],
        ["generation.max_num_batched_tokens=256"],
    ),
]
SERVE_CASES += [
    (
        "any port of a cluster",
        [*CHAT_MODEL, "serve.backend=ray_serve"],
        ["serve.port=0"],
        ["serve.port=0", "name one, such as 8000"],
        ["serve.port=8000"],
    ),
]
CHAT = ["stage=chat", "chat.url=http://127.0.0.1:8000/v1"]
SERVE_CASES += [
    (
        "nobody to talk to",
        ["stage=chat"],
        [],
        ["model.path is empty, and chat.url=null", "name the model to talk to"],
        ["model.path=a/b"],
    ),
    (
        "two to compare with",
        [*CHAT, "chat.compare_url=http://a/v1"],
        ["chat.compare_path=a/b"],
        ["chat.compare_url=http://a/v1, chat.compare_path=a/b", "set one of them to null"],
        ["chat.compare_path=a/b", "chat.compare_url=null"],
    ),
    (
        "no address to talk to",
        CHAT,
        ["chat.url=127.0.0.1:8000"],
        ["chat.url=127.0.0.1:8000: is not the address"],
        CHAT,
    ),
    (
        "a password in the address of another model",
        CHAT,
        ["chat.compare_url=http://me:secret@a/v1"],
        ["chat.compare_url: has a user or a password", "chat.token_variable"],
        ["chat.compare_url=http://a/v1"],
    ),
    (
        "all memory for a model to talk to",
        ["stage=chat", "model.path=a/b"],
        ["generation.kv_cache_gib=null"],
        ["generation.kv_cache_gib=null"],
        ["generation.kv_cache_gib=1"],
    ),
]
SERVICE = ["reward.url=http://127.0.0.1:8000"]
CASES += [
    (
        "no address",
        [],
        ["reward.url=127.0.0.1:8000"],
        ["reward.url=127.0.0.1:8000: is not the address", "http://HOST:PORT"],
        ["reward.url=http://127.0.0.1:8000"],
    ),
    (
        "no port",
        [],
        ["reward.url=http://a:port"],
        ["reward.url=http://a:port: is not the address"],
        SERVICE,
    ),
    (
        "a password in an address",
        [],
        ["reward.url=http://me:secret@a/b"],
        ["reward.url: has a user or a password", "reward.http.token_variable"],
        ["reward.url=http://a/b", "reward.http.token_variable=TOKEN"],
    ),
    (
        "a query in an address",
        [],
        ["reward.url='http://a/b?c=d'"],
        ["reward.url=http://a/b?c=d: has a query"],
        ["reward.url=http://a/b"],
    ),
    (
        "deadline of a service",
        SERVICE,
        ["reward.http.deadline_s=700"],
        ["reward.http.deadline_s=700.0", "deadlines.generate_s=600.0"],
        ["reward.http.deadline_s=600"],
    ),
    (
        "two parts of one name",
        SERVICE,
        ["reward.http.name=exact_match"],
        ["reward.functions[0] and reward.http are both named 'exact_match'"],
        ["reward.http.name=service"],
    ),
    (
        "a service that counts for nothing",
        [*SERVICE, "reward.functions=[]"],
        ["reward.http.weight=0"],
        ["every part of the reward has weight 0"],
        ["reward.http.weight=0.1"],
    ),
]
OWN_JUDGE = ["reward.judge.model=a/b"]
CASES += [
    (
        "a rubric without the response",
        OWN_JUDGE,
        ["reward.judge.rubric='Is {prompt} good?'"],
        ["reward.judge.rubric: has no {response}"],
        ["reward.judge.rubric='Is {response} good?'"],
    ),
    (
        "a rubric with an answer that is nowhere",
        [*OWN_JUDGE, "reward.functions=[length]"],
        ["reward.judge.rubric='{response} or {answer}'", "data.answer_column=null"],
        ["reward.judge.rubric: has {answer}", "data.answer_column=null"],
        ["reward.judge.rubric='{response}'", "data.answer_column=null"],
    ),
    (
        "a pattern that is none",
        OWN_JUDGE,
        ["reward.judge.pattern='([0-9]'"],
        ["reward.judge.pattern=([0-9]: is not a regular expression"],
        ["reward.judge.pattern='([0-9])'"],
    ),
    (
        "a pattern without a group",
        OWN_JUDGE,
        ["reward.judge.pattern='[0-9]'"],
        ["reward.judge.pattern=[0-9]: has no group"],
        ["reward.judge.pattern='Score: ([0-9]+)'"],
    ),
    (
        "an empty range of scores",
        OWN_JUDGE,
        ["reward.judge.min_score=10"],
        ["reward.judge.min_score=10: must be less than reward.judge.max_score=10"],
        ["reward.judge.min_score=0"],
    ),
    (
        "judgements that are the same",
        OWN_JUDGE,
        ["reward.judge.num_samples=3"],
        ["reward.judge.num_samples=3", "reward.judge.temperature=0"],
        ["reward.judge.num_samples=3", "reward.judge.temperature=1"],
    ),
    (
        "deadline of a judge",
        OWN_JUDGE,
        ["reward.judge.timeout_s=700"],
        ["reward.judge.timeout_s=700.0", "deadlines.generate_s=600.0"],
        ["reward.judge.timeout_s=600"],
    ),
    (
        "a judge that sleeps",
        ["placement=colocated"],
        ["reward.judge.model=policy"],
        ["reward.judge.model=policy", "placement=disaggregated"],
        OWN_JUDGE,
    ),
    (
        "a judge without a cache",
        OWN_JUDGE,
        ["reward.judge.kv_cache_gib=null"],
        ["reward.judge.kv_cache_gib=null", "for instance to 1"],
        ["reward.judge.kv_cache_gib=1"],
    ),
    (
        "parts of GPUs for the ranks of a judge",
        OWN_JUDGE,
        ["reward.judge.num_gpus=0.5", "reward.judge.tensor_parallel_size=2"],
        ["reward.judge.num_gpus=0.5", "reward.judge.tensor_parallel_size=2"],
        ["reward.judge.num_gpus=1", "reward.judge.tensor_parallel_size=2"],
    ),
]
EVALUATE = ["stage=evaluate", "evaluation.models.sft=a/b"]
WHILE_TRAINING = ["evaluation.every=2", "evaluation.path=held_out.jsonl"]
CASES += [
    (
        "nothing to evaluate",
        EVALUATE,
        ["evaluation.models={}"],
        ["evaluation.models is empty", "evaluation.models.sft="],
        ["evaluation.models={rl: c/d}"],
    ),
    (
        "a model without a path",
        EVALUATE,
        ["evaluation.models.rl="],
        ["evaluation.models.rl is empty", "folder or a hub model"],
        ["evaluation.models.rl=c/d"],
    ),
    (
        "a baseline that is not there",
        EVALUATE,
        ["evaluation.baseline=base"],
        ["evaluation.baseline=base", "there are sft"],
        ["evaluation.baseline=sft"],
    ),
    (
        "nothing to ask",
        EVALUATE,
        ["data.path="],
        ["data.path is empty", "held-out prompts"],
        ["data.path=", "evaluation.path=held_out.jsonl"],
    ),
    (
        "nothing that scores",
        EVALUATE,
        ["reward.functions=[]"],
        ["reward.functions is empty", "scored as in stage=rl"],
        ["reward.functions=[length]"],
    ),
    (
        "models that judge themselves",
        EVALUATE,
        ["reward.judge.model=policy"],
        ["reward.judge.model=policy", "judge itself"],
        ["reward.judge.model=a/b", "reward.judge.kv_cache_gib=1"],
    ),
    (
        "prompts that are trained on",
        WHILE_TRAINING,
        ["evaluation.path=null"],
        ["evaluation.every=2", "trained on", "evaluation.split"],
        ["evaluation.path=null", "evaluation.split=test"],
    ),
    (
        "no answers",
        EVALUATE,
        ["evaluation.greedy=false"],
        ["evaluation.samples=0", "no answer to evaluate"],
        ["evaluation.greedy=false", "evaluation.samples=1"],
    ),
    (
        "no answers while training",
        WHILE_TRAINING,
        ["evaluation.greedy=false"],
        ["evaluation.samples=0", "no answer to evaluate"],
        ["evaluation.greedy=false", "evaluation.every=0", "evaluation.path=null"],
    ),
    (
        "more choices than answers",
        [*EVALUATE, "evaluation.samples=4"],
        ["evaluation.pass_at_k=[1,5]"],
        ["evaluation.pass_at_k=[1, 5]", "evaluation.samples=4", "to at least 5"],
        ["evaluation.pass_at_k=[1,4]"],
    ),
    (
        "no choice at all",
        [*EVALUATE, "evaluation.samples=4"],
        ["evaluation.pass_at_k=[0]"],
        ["0 of evaluation.samples=4", "leave 0 out"],
        ["evaluation.pass_at_k=[1]"],
    ),
    (
        "wins by what is no part",
        [*EVALUATE, "reward.model.path=a/b"],
        ["evaluation.win_by=taste"],
        ["evaluation.win_by=taste", "reward, exact_match, model"],
        ["evaluation.win_by=model"],
    ),
    (
        "success by what is no part",
        WHILE_TRAINING,
        ["evaluation.success_by=length"],
        ["evaluation.success_by=length", "reward, exact_match"],
        ["evaluation.success_by=exact_match"],
    ),
    (
        "a divergence of greedy answers",
        [*EVALUATE, "reference.path=a/b"],
        ["evaluation.kl=k3"],
        ["evaluation.kl=k3", "sampled answers", "evaluation.samples=0"],
        ["evaluation.kl=k3", "evaluation.samples=2"],
    ),
    (
        "a divergence from nothing",
        [*EVALUATE, "evaluation.samples=2"],
        ["evaluation.kl=k1"],
        ["evaluation.kl=k1", "reference.path is null"],
        ["evaluation.kl=k1", "reference.path=a/b"],
    ),
    (
        "a divergence while training without a reference",
        [*WHILE_TRAINING, "evaluation.samples=2", "evaluation.kl=k3"],
        ["algorithm.kl_coefficient=0"],
        ["evaluation.kl=k3", "algorithm.kl_coefficient=0"],
        ["algorithm.kl_coefficient=0", "evaluation.kl=none"],
    ),
    (
        "a divergence from a policy that is away",
        [*WHILE_TRAINING, "evaluation.samples=2", "evaluation.kl=k3", "placement=colocated"],
        ["training.lora.r=4"],
        ["evaluation.kl=k3", "without its adapter"],
        ["training.lora.r=4", "reference.source=own"],
    ),
    (
        "the best of what is not measured",
        [*WHILE_TRAINING, "evaluation.samples=2", "evaluation.pass_at_k=[2]"],
        ["evaluation.best_metric=evaluation/greedy/pass_at_2"],
        ["is not measured", "did you mean evaluation/sampled/pass_at_2?"],
        ["evaluation.best_metric=evaluation/sampled/pass_at_2"],
    ),
    (
        "demonstrations that no engine holds",
        [*EVALUATE, "examples.eval_path=rows.jsonl"],
        ["examples.max_tokens=4096"],
        ["generation.max_num_batched_tokens=4096", "at least 4097"],
        ["examples.max_tokens=4095"],
    ),
    (
        "a template that the harness does not know",
        [*EVALUATE, "evaluation.lm_eval_tasks=[sums]", "model.chat_template=a.jinja"],
        ["evaluation.lm_eval_chat=true"],
        ["model.chat_template=a.jinja", "evaluation.lm_eval_chat to false"],
        ["evaluation.lm_eval_chat=true", "model.chat_template=null"],
    ),
    (
        "greedy answers in two places",
        [*WHILE_TRAINING, "algorithm=remax", "samples_per_prompt=2"],
        ["evaluation.samples=3"],
        ["evaluation.samples=3", "algorithm.advantage=remax", "samples_per_prompt=2"],
        ["evaluation.samples=2"],
    ),
    (
        "a mass without a limit, of an evaluation with a divergence",
        [*EVALUATE, "evaluation.samples=2", "reference.path=a/b", "evaluation.kl=k3"],
        ["generation.top_p=0.9"],
        ["generation.top_p=0.9", "generation.top_k"],
        ["generation.top_p=0.9", "evaluation.kl=none"],
    ),
]
COMPRESS = ["stage=compress"]
CASES += [
    (
        "no licence",
        ["stage=export", "export.licence=mit"],
        ["export.licence=null"],
        ["export.licence=null", "export.licence=apache-2.0"],
        ["export.licence=apache-2.0"],
    ),
    (
        "no method",
        COMPRESS,
        ["compress.methods=[]"],
        ["compress.methods=[]", "int8, int4"],
        ["compress.methods=[int8]"],
    ),
    (
        "an unknown method",
        COMPRESS,
        ["compress.methods=[int8,int3]"],
        ["compress.methods: 'int3' is none of", "int4"],
        ["compress.methods=[int8,int4]"],
    ),
    (
        "a method twice",
        COMPRESS,
        ["compress.methods=[int8,int8]"],
        ["compress.methods: int8 is there more than once"],
        ["compress.methods=[int8]"],
    ),
    (
        "nothing to calibrate on",
        COMPRESS,
        ["data.path="],
        ["data.path is empty", "trained on"],
        ["data.path=rows.jsonl"],
    ),
]
# Those of stages that no recipe of reinforcement learning is a base of.
STAGE_CASES = PREPARE_CASES + PIPELINE_CASES + SERVE_CASES
# A base that is fine only together with the repair (the rule has two sides).
NOT_FINE_ALONE = {"colocated devices"}


def _key(override: str) -> str:
    return override.partition("=")[0]


@pytest.mark.parametrize(
    ("base", "breaking", "fragments", "repair"),
    [case[1:] for case in STAGE_CASES],
    ids=[case[0] for case in STAGE_CASES],
)
def test_rule_of_a_stage(base, breaking, fragments, repair):
    with pytest.raises(ConfigError) as caught:
        load_config([*base, *breaking])
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message, "one problem, one line"
    load_config([*base, *repair])


def test_a_rule_holds_for_its_stages_alone():
    """The data stage needs no model; training does not care about sources."""
    load_config(PREPARE)
    assert load_config([*PREPARE, "samples_per_prompt=1"]).samples_per_prompt == 1
    load_config(["recipe=demo", "prepare.split=[1]", "prepare.total_samples=3"])
    with pytest.raises(ConfigError, match="output_dir is empty"):
        load_config([*PREPARE, "output_dir="])


@pytest.mark.parametrize(
    ("name", "base", "breaking", "fragments", "repair"), CASES, ids=[case[0] for case in CASES]
)
def test_rule(name, base, breaking, fragments, repair):
    base = ["recipe=demo", *base]
    if name not in NOT_FINE_ALONE:
        load_config(base)
    with pytest.raises(ConfigError) as caught:
        load_config([*base, *breaking])
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message, "one problem, one line"
    load_config([*base, *repair])


def _broken_rules(base, breaking):
    config = read_config([*base, *breaking])
    rules = [rule for rule in ALL_RULES if config.stage.name in rule.stages]
    return [rule for rule in rules if list(rule.problems(config))]


def test_every_rule_has_a_case():
    cases = [(["recipe=demo", *case[1]], case[2]) for case in CASES]
    cases += [(case[1], case[2]) for case in STAGE_CASES]
    broken = [_broken_rules(base, breaking) for base, breaking in cases]
    covered = {rule.about for rules in broken for rule in rules}
    assert {rule.about for rule in ALL_RULES} - covered == set()


@pytest.mark.parametrize(
    ("base", "breaking"), [(case[1], case[2]) for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_rule_is_not_asked_about_a_value_that_was_not_understood(base, breaking):
    config = read_config(["recipe=demo", *base, *breaking])
    keys = {_known_key(_key(override)) for override in breaking}
    assert cross_field_problems(config, without=keys) == []


def _known_key(name: str) -> str:
    return next(key for key in all_keys() if name == key or name.startswith(key + "."))


def test_rules_name_keys_that_exist():
    known = {*all_keys(), *group_names()}
    assert [key for rule in ALL_RULES for key in rule.keys if key not in known] == []


def test_roles_that_do_not_run_are_not_held_to_rules():
    idle = ["algorithm.kl_coefficient=0", "reference.zero_stage=2", "reference.num_ranks=1000"]
    load_config(["recipe=demo", *idle, "critic.max_tokens_per_micro_batch=1"])


def test_a_reward_model_that_is_off_is_not_held_to_rules():
    load_config(["recipe=demo", "reward.model.zero_stage=2", "reward.model.mean=1"])
    load_config(["recipe=demo", "reward.model.name=exact_match", "reward.model.weight=0"])
    load_config(["recipe=demo", "reward.model.max_tokens_per_micro_batch=1"])


def test_an_evaluation_is_not_held_to_rules_of_training():
    idle = ["algorithm=ppo", "critic.max_tokens_per_micro_batch=1", "samples_per_prompt=1"]
    idle += ["training.zero_stage=0", "training.offload_optimizer=true", "model.path="]
    load_config(["recipe=demo", *EVALUATE, *idle, "placement=colocated", "max_staleness=1"])
    measured = ["evaluation.kl=k1", "evaluation.samples=1", "reference.path=a/b"]
    with pytest.raises(ConfigError, match=r"reference\.zero_stage=2"):
        load_config(["recipe=demo", *EVALUATE, *measured, "reference.zero_stage=2"])


def test_what_is_evaluated_while_training_is_of_no_concern_without_it():
    load_config(["recipe=demo", "evaluation.pass_at_k=[9]", "evaluation.win_by=nothing"])
    load_config(["recipe=demo", "evaluation.greedy=false", "evaluation.kl=k3"])


def test_texts_that_are_not_read_are_not_held_to_rules():
    load_config(["recipe=demo", "texts.max_tokens=9000", "texts.texts_per_step=1"])


def test_only_the_trained_ranks_run_where_examples_are_learnt_from():
    idle = ["algorithm=ppo", "critic.max_tokens_per_micro_batch=1", "reference.zero_stage=2"]
    load_config(["recipe=demo", *FIT, *idle, "data.path=", "reward.functions=[]"])
    with pytest.raises(ConfigError, match=r"training\.offload_optimizer=true"):
        load_config(["recipe=demo", *FIT, "training.offload_optimizer=true"])
    with pytest.raises(ConfigError, match=r"output_dir=s3://a"):
        load_config(["recipe=demo", *FIT, "output_dir=s3://a"])


def test_all_problems_are_in_one_message():
    with pytest.raises(ConfigError) as caught:
        load_config(
            ["recipe=demo", "num_steps=x", "training.zero_stage=9", "algorithm.kl_estimator=k1"]
        )
    message = str(caught.value)
    assert message.startswith("the configuration is wrong in 3 places:\n")
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == [
        "  - num_steps=x",
        "  - training.zero_stage=9",
        "  - algorithm.kl_estimator=k1",
    ]
