"""Rules of the engines."""

from __future__ import annotations

from tests.unit.config.rules.cases import (
    CHAT_MODEL,
    EVALUATE,
    check_broken_values,
    check_rule,
    check_rule_of_a_stage,
    each,
)

CASES = [
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
        "engine step and sample, without chunks",
        ["generation.max_num_seqs=16", "generation.max_num_batched_tokens=37"],
        ["generation.extra_engine_args.enable-chunked-prefill=false"],
        ["generation.max_num_batched_tokens=37", "at least 38", "enable_chunked_prefill"],
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
        "a mass without a limit, of an evaluation with a divergence",
        [*EVALUATE, "evaluation.samples=2", "reference.path=a/b", "evaluation.kl=k3"],
        ["generation.top_p=0.9"],
        ["generation.top_p=0.9", "generation.top_k"],
        ["generation.top_p=0.9", "evaluation.kl=none"],
    ),
]

STAGE_CASES = [
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
    (
        "all memory for a model to talk to",
        ["stage=chat", "model.path=a/b"],
        ["generation.kv_cache_gib=null"],
        ["generation.kv_cache_gib=null"],
        ["generation.kv_cache_gib=1"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)


@each(STAGE_CASES)
def test_rule_of_a_stage(case):
    check_rule_of_a_stage(case)
