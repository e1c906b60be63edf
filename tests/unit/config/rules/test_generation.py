"""Rules of the engines."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from rlhf_ray.config.load import read_config
from rlhf_ray.config.rules.generation import FIXED_ARGUMENTS, OWNED_ARGUMENTS
from rlhf_ray.config.rules.table import cross_field_problems
from tests.unit.config.rules.cases import (
    CHAT_MODEL,
    COLOCATED_GPU,
    EVALUATE,
    GPU,
    check_broken_values,
    check_rule,
    check_rule_of_a_stage,
    each,
)

CASES = [
    (
        "stages of an engine on CPUs",
        [],
        ["generation.data_parallel_size=2"],
        ["generation.data_parallel_size=2", "generation.num_gpus=0", "whole GPU"],
        ["generation.data_parallel_size=1"],
    ),
    (
        "colocated stages",
        COLOCATED_GPU,
        ["generation.data_parallel_size=2"],
        ["generation.data_parallel_size=2", "placement=disaggregated"],
        ["generation.data_parallel_size=2", "placement=disaggregated"],
    ),
    (
        "stages and a judge with more GPUs in a bundle",
        [*GPU, "generation.pipeline_parallel_size=2", "reward.judge.model=a/b"],
        ["reward.judge.tensor_parallel_size=2", "reward.judge.num_gpus=1"],
        ["reward.judge.tensor_parallel_size=2", "pipeline_parallel_size=2", "set either to 1"],
        ["generation.pipeline_parallel_size=1", "reward.judge.num_gpus=1"],
    ),
    (
        "stages and copies",
        [*GPU, "generation.data_parallel_size=2"],
        ["generation.pipeline_parallel_size=2"],
        ["generation.pipeline_parallel_size=2", "generation.data_parallel_size=2", "set one to 1"],
        ["generation.pipeline_parallel_size=2", "generation.data_parallel_size=1"],
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
        "engine step and sample, without chunks",
        ["generation.max_num_seqs=16"],
        ["generation.max_num_batched_tokens=37"],
        ["generation.max_num_batched_tokens=37", "at least 38", "enable_chunked_prefill"],
        ["generation.max_num_batched_tokens=38"],
    ),
    (
        "chunks on a CPU",
        [],
        ["generation.extra_engine_args.enable-chunked-prefill=true"],
        ["enable_chunked_prefill=true", "request with a seed"],
        ["generation.extra_engine_args={}"],
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
        "log-probabilities of another distribution",
        [],
        ["generation.extra_engine_args.logprobs_mode=raw_logprobs"],
        ["generation.extra_engine_args.logprobs_mode", "processed_logprobs", "remove it"],
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
        "a server in stages",
        [*CHAT_MODEL, "generation=gpu"],
        ["generation.pipeline_parallel_size=2"],
        ["generation.pipeline_parallel_size=2", "only stage=rl", "set it to 1"],
        ["generation.pipeline_parallel_size=1"],
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


# One of each group of arguments, with the way out that the message must name.
OWNED = {
    "weight_transfer_config": "publish.transport",
    "distributed_executor_backend": "generation.pipeline_parallel_size",
    "enable_sleep_mode": "placement",
    "tensor_parallel_size": "generation.tensor_parallel_size",
    "pipeline-parallel-size": "generation.pipeline_parallel_size",
    "data_parallel_size": "generation.data_parallel_size",
    "data-parallel-size-local": "generation.num_engines",
    "override_generation_config": "generation.temperature",
    "logits_processors": "learner",
    "nnodes": "placement",
    "revision": "model.path",
    "prefill_context_parallel_size": "generation.tensor_parallel_size",
}


@pytest.mark.parametrize("argument", OWNED)
def test_arguments_that_break_a_run_are_refused_by_name(argument):
    config = read_config(["recipe=demo", f"generation.extra_engine_args.{argument}=2"])
    (problem,) = cross_field_problems(config)
    assert problem.startswith(f"generation.extra_engine_args.{argument}: ")
    assert OWNED[argument] in problem


def test_every_refused_argument_is_one_of_vllm():
    refused = {*OWNED_ARGUMENTS, *FIXED_ARGUMENTS} - {"data_parallel_"}
    assert refused - vllm_arguments() == set()


def vllm_arguments() -> set[str]:
    """Fields of vLLM's `EngineArgs`, read from its source: importing it takes many seconds."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    (engine_arguments,) = (
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"
    )
    return {
        field.target.id
        for field in engine_arguments.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def test_arguments_for_speed_are_free():
    free = "{block_size:32,enable_chunked_prefill:false,kv_cache_dtype:fp8,quantization:fp8}"
    assert not cross_field_problems(
        read_config(["recipe=demo", f"generation.extra_engine_args={free}"])
    )
