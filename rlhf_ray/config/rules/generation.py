"""Rules of the engines: capacity, sampling, devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rlhf_ray.config.groups.generation import LARGEST_TOP_K, EngineConfig
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import RL_STAGES, SCORING_STAGES, SERVER_STAGES

_SAMPLING = "generation.temperature, top_p, top_k and min_p"
_ENGINES = "generation.num_engines and the placement"

# Engine arguments and the keys that set them.
OWNED_ARGUMENTS: dict[str, str] = {
    "enable_lora": "publish.lora",
    "max_loras": "publish.lora",
    "max_lora_rank": "training.lora.r",
    "lora_target_modules": "training.lora.target_modules",
    "model": "model.path",
    "tokenizer": "model.tokenizer_path",
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "generation.dtype",
    "tensor_parallel_size": "generation.tensor_parallel_size",
    "max_num_seqs": "generation.max_num_seqs",
    "max_num_batched_tokens": "generation.max_num_batched_tokens",
    "max_model_len": "data.max_prompt_tokens and generation.max_response_tokens",
    "enforce_eager": "generation.enforce_eager",
    "enable_prefix_caching": "generation.enable_prefix_caching",
    "gpu_memory_utilization": "generation.gpu_memory_utilization",
    "kv_cache_memory_bytes": "generation.kv_cache_gib",
    "max_logprobs": "generation.top_k",
    "seed": "seed",
    "weight_transfer_config": "publish.transport",
    "enable_sleep_mode": "placement",
    "pipeline_parallel_size": "generation.pipeline_parallel_size",
    "data_parallel_size": "generation.data_parallel_size",
    "distributed_executor_backend": "generation.pipeline_parallel_size",
    "override_generation_config": _SAMPLING,
    "generation_config": _SAMPLING,
    "revision": "model.path",
    "code_revision": "model.path",
    "tokenizer_revision": "model.tokenizer_path",
    "hf_config_path": "model.path",
    "nnodes": _ENGINES,
    "node_rank": _ENGINES,
    "master_addr": _ENGINES,
    "master_port": _ENGINES,
    "device_ids": _ENGINES,
}

_NO_GPUS = "the placement has no GPUs for it"
_UNKNOWN_TO_LEARNER = (
    "changes the distribution that is sampled from, which the learner's log-probabilities do not "
    "follow"
)

# Engine arguments that no key sets, because a run allows one value; and the reason.
FIXED_ARGUMENTS: dict[str, str] = {
    "logprobs_mode": "log-probabilities must be those of the distribution that was sampled from "
    "(processed_logprobs), or every probability ratio is wrong",
    "logits_processors": _UNKNOWN_TO_LEARNER,
    "watermark_config": _UNKNOWN_TO_LEARNER,
    "runner": "engines of a run generate",
    "convert": "engines of a run generate",
    "skip_tokenizer_init": "generation.stop and text rewards need the tokenizer",
    "tokens_only": "generation.stop and text rewards need the tokenizer",
    "prefill_context_parallel_size": f"{_NO_GPUS}; raise generation.tensor_parallel_size",
    "enable_elastic_ep": f"{_NO_GPUS}; raise generation.num_engines",
}
# All of `data_parallel_rank`, `data_parallel_address`, ...
_DATA_PARALLEL = "data_parallel_"
FIXED_ARGUMENTS[_DATA_PARALLEL] = f"{_NO_GPUS}; raise generation.num_engines"


def argument_problems(
    arguments: Iterable[str], owners: Mapping[str, str], fixed: Mapping[str, str]
) -> Iterator[str]:
    """The rule of `extra_engine_args`: no argument that a key sets, or that has one value."""
    for given in arguments:
        name = given.replace("-", "_")
        if name in owners:
            yield (
                f"generation.extra_engine_args.{given}: is set by {owners[name]}; change that key "
                f"instead"
            )
        elif reason := fixed.get(_DATA_PARALLEL if name.startswith(_DATA_PARALLEL) else name):
            yield f"generation.extra_engine_args.{given}: {reason}; remove it"


def _whole_prefill(config: Config) -> Iterator[str]:
    generation, is_policy = config.generation, config.reward.judge.is_policy
    # An engine that also judges takes steps that hold the judge's questions.
    longest = config.max_sequence_tokens if is_policy else config.max_engine_tokens
    given = {name.replace("-", "_"): v for name, v in generation.extra_engine_args.items()}
    on_gpu = generation.num_gpus > 0
    reads_in_chunks = given.get("enable_chunked_prefill", on_gpu)
    if reads_in_chunks and not on_gpu:
        yield (
            "generation.extra_engine_args.enable_chunked_prefill=true: on a CPU vLLM ends at a "
            "request with a seed that it reads in several steps; remove it"
        )
    elif not reads_in_chunks and generation.max_num_batched_tokens < longest:
        yield (
            f"generation.max_num_batched_tokens={generation.max_num_batched_tokens}: the longest "
            f"sequence has {longest} tokens, which an engine on a CPU (or with "
            f"enable_chunked_prefill=false) reads in one step; raise it to at least {longest}"
        )


def _engine_step_holds_its_sequences(config: Config) -> Iterator[str]:
    tokens, sequences = config.generation.max_num_batched_tokens, config.generation.max_num_seqs
    if tokens < sequences:
        yield (
            f"generation.max_num_batched_tokens={tokens}: one engine step has a token for each "
            f"of generation.max_num_seqs={sequences} sequences; raise it to at least {sequences} "
            f"or lower max_num_seqs"
        )


def _support_of_sampling(config: Config) -> Iterator[str]:
    if _is_unscored(config):
        return
    generation = config.generation
    narrowed = {"top_p": (generation.top_p, 1.0), "min_p": (generation.min_p, 0.0)}
    for name, (value, off) in narrowed.items():
        if value != off and generation.top_k == 0:
            yield (
                f"generation.{name}={value}: the learner normalises over the support that the "
                f"engine sampled from, which without a limit may be the whole vocabulary; set "
                f"generation.top_k to a number from 1 to {LARGEST_TOP_K} too, or {name} to "
                f"{off:g}"
            )


def _least_length(config: Config) -> Iterator[str]:
    least = config.generation.min_response_tokens
    if least and not _is_unscored(config):
        yield (
            f"generation.min_response_tokens={least}: the engine would exclude the end of text, "
            f"which the learner's log-probabilities include, so every probability ratio would be "
            f"wrong; set it to 0"
        )


def _is_unscored(config: Config) -> bool:
    """Whether no role computes log-probabilities of the samples."""
    return config.is_evaluation and not config.needs_reference


def _stop_strings(config: Config) -> Iterator[str]:
    if "" in config.generation.stop:
        yield (
            f"generation.stop={config.generation.stop}: an empty string would end every response "
            f"at once; remove it"
        )


def cache_problems(group: str, engine: EngineConfig) -> Iterator[str]:
    """The rule of `kv_cache_gib`, for the engines that `group` configures."""
    if engine.num_gpus == 0 and engine.kv_cache_gib is None:
        yield (
            f"{group}.kv_cache_gib=null: without a GPU ({group}.num_gpus=0) the engine would take "
            f"a share of the machine's whole memory; set it, for instance to 1"
        )


def gpu_problems(group: str, engine: EngineConfig) -> Iterator[str]:
    """The rule of `num_gpus`, for the engines that `group` configures."""
    gpus, ranks = engine.num_gpus, engine.tensor_parallel_size
    if 0 < gpus < 1 and ranks > 1:
        yield (
            f"{group}.num_gpus={gpus}: each of {group}.tensor_parallel_size={ranks} ranks needs a "
            f"whole GPU; set it to 1, or tensor_parallel_size to 1"
        )


def _parallel_engines(config: Config) -> Iterator[str]:
    generation = config.generation
    sizes = {
        "pipeline_parallel_size": generation.pipeline_parallel_size,
        "data_parallel_size": generation.data_parallel_size,
    }
    for name, size in sizes.items():
        key = f"generation.{name}={size}"
        if size == 1:
            continue
        if config.stage.name not in RL_STAGES:
            yield f"{key}: only stage=rl starts such engines; set it to 1"
        elif generation.num_gpus != 1:
            yield (
                f"{key}: each worker of the engine needs a whole GPU, but generation.num_gpus="
                f"{generation.num_gpus:g}; set num_gpus to 1, or {name} to 1"
            )
        elif config.placement.strategy == "colocated":
            yield (
                f"{key}: with placement=colocated each engine shares the GPUs of one bundle with "
                f"the learner; set {name} to 1, or use placement=disaggregated"
            )
    judge = config.reward.judge
    if generation.spans_nodes and judge.has_engines and judge.tensor_parallel_size > 1:
        yield (
            f"reward.judge.tensor_parallel_size={judge.tensor_parallel_size}: with "
            f"generation.pipeline_parallel_size={generation.pipeline_parallel_size} vLLM wants "
            f"bundles of one GPU at most, and the judge's engine would have one of all its GPUs; "
            f"set either to 1"
        )
    if all(size > 1 for size in sizes.values()):
        yield (
            f"generation.pipeline_parallel_size={generation.pipeline_parallel_size}: copies of a "
            f"model in one engine (generation.data_parallel_size="
            f"{generation.data_parallel_size}) are on one node and have no stages; set one to 1"
        )


def _engine_arguments(config: Config) -> Iterator[str]:
    arguments = config.generation.extra_engine_args
    yield from argument_problems(arguments, OWNED_ARGUMENTS, FIXED_ARGUMENTS)


# Stages that start the engines of `generation`.
_ENGINE_STAGES = (*SCORING_STAGES, *SERVER_STAGES)
_PARALLEL = ("generation.pipeline_parallel_size", "generation.data_parallel_size")

GENERATION_RULES: tuple[Rule, ...] = (
    Rule(
        about="`generation.max_num_batched_tokens` is at least `data.max_prompt_tokens` + "
        "`generation.max_response_tokens` on a CPU, and where `generation.extra_engine_args` has "
        "`enable_chunked_prefill: false`; on a CPU it is not true.",
        keys=(
            "generation.max_num_batched_tokens",
            "generation.num_gpus",
            "generation.extra_engine_args",
            "data.max_prompt_tokens",
            "generation.max_response_tokens",
            "examples.max_tokens",
            "examples.eval_path",
        ),
        problems=_whole_prefill,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`generation.max_num_batched_tokens` is at least `generation.max_num_seqs`.",
        keys=("generation.max_num_batched_tokens", "generation.max_num_seqs"),
        problems=_engine_step_holds_its_sequences,
        stages=_ENGINE_STAGES,
    ),
    Rule(
        about="`generation.top_p` below 1 and `generation.min_p` above 0 need "
        f"`generation.top_k` from 1 to {LARGEST_TOP_K}.",
        keys=("generation.top_p", "generation.min_p", "generation.top_k"),
        problems=_support_of_sampling,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`generation.min_response_tokens` is 0, because the learner does not apply it.",
        keys=("generation.min_response_tokens",),
        problems=_least_length,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`generation.stop` has no empty string.",
        keys=("generation.stop",),
        problems=_stop_strings,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`generation.kv_cache_gib` is set if `generation.num_gpus` is 0.",
        keys=("generation.num_gpus", "generation.kv_cache_gib"),
        problems=lambda config: cache_problems("generation", config.generation),
        stages=_ENGINE_STAGES,
    ),
    Rule(
        about="A fraction of a GPU per engine rank needs `generation.tensor_parallel_size` 1.",
        keys=("generation.num_gpus", "generation.tensor_parallel_size"),
        problems=lambda config: gpu_problems("generation", config.generation),
        stages=_ENGINE_STAGES,
    ),
    Rule(
        about="`generation.extra_engine_args` has no argument that another key sets, and none that "
        "log-probabilities, weights or placement of a run depend on.",
        keys=("generation.extra_engine_args",),
        problems=_engine_arguments,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`generation.pipeline_parallel_size` or `generation.data_parallel_size` above 1, not "
        "both, needs `stage=rl`, `placement=disaggregated` and `generation.num_gpus` 1; the first "
        "also `reward.judge.tensor_parallel_size` 1.",
        keys=(
            *(*_PARALLEL, "generation.num_gpus", "placement.strategy"),
            *("reward.judge.model", "reward.judge.tensor_parallel_size"),
        ),
        problems=_parallel_engines,
        stages=_ENGINE_STAGES,
    ),
)
