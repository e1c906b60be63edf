"""Rules of the batch: from prompts to optimiser steps, micro-batches and groups of ranks."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.groups.algorithm import GROUP_ADVANTAGES, OldLogprobsFrom
from rlhf_ray.config.rules.rule import ROLE_KEYS, SPLIT_KEYS, Rule, model_roles, trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import DEEPSPEED_STAGES, SCORING_STAGES


def _sample_fits_micro_batch(config: Config) -> Iterator[str]:
    longest = config.max_sequence_tokens
    for group, role in model_roles(config):
        if role.max_sample_tokens < longest:
            size = role.sequence_parallel_size
            over = f", over {group}.sequence_parallel_size={size} ranks" if size > 1 else ""
            yield (
                f"{group}.max_tokens_per_micro_batch={role.max_tokens_per_micro_batch}: the "
                f"longest sample has {longest} tokens (data.max_prompt_tokens="
                f"{config.data.max_prompt_tokens} + generation.max_response_tokens="
                f"{config.generation.max_response_tokens}){over}; raise it to at least "
                f"{-(-longest // size)}, or shorten prompts or responses"
            )


def _probe_has_tokens(config: Config) -> Iterator[str]:
    longest = config.max_sequence_tokens
    if longest < _SHORTEST_SEQUENCE:
        yield (
            f"generation.max_response_tokens={config.generation.max_response_tokens}: with "
            f"data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence has {longest} "
            f"tokens at most, and the probe that proves the engines' weights needs "
            f"{_SHORTEST_SEQUENCE}; raise one of them"
        )


def _mini_batches_have_samples(config: Config) -> Iterator[str]:
    samples, parts = config.samples_per_step, config.algorithm.num_mini_batches
    if parts > samples:
        yield (
            f"algorithm.num_mini_batches={parts}: a step has only {_samples(config)}; lower it to "
            f"at most {samples}, or raise prompts_per_step or samples_per_prompt"
        )


def _distance_from_the_old_policy(config: Config) -> Iterator[str]:
    in_update = OldLogprobsFrom.LEARNER_IN_UPDATE
    if config.algorithm.policy_loss == "kl_cov" and config.old_logprobs_from is in_update:
        yield (
            "algorithm.policy_loss=kl_cov: its penalty is on the distance from the old policy, "
            "which is 0 in the only optimiser step of a batch (algorithm.num_epochs=1 x "
            "algorithm.num_mini_batches=1), so it would do nothing; set num_mini_batches to "
            "8, or use policy_loss=clip_cov"
        )


def _ranks_have_samples(config: Config) -> Iterator[str]:
    parts = config.algorithm.num_mini_batches
    smallest = config.samples_per_step // parts
    for group, role in trained_roles(config):
        # The rule before this one reports an optimiser step without samples.
        if 0 < smallest < role.num_sample_groups:
            yield (
                f"{group}.num_ranks={role.num_ranks}: an optimiser step has only {smallest} "
                f"samples ({_samples(config)}, algorithm.num_mini_batches={parts}), so some ranks "
                f"would be idle; use at most {smallest * role.ranks_per_sample} ranks, or "
                f"raise prompts_per_step or samples_per_prompt"
            )
    reference = config.reference
    if config.starts_reference and reference.num_sample_groups > config.samples_per_step:
        yield (
            f"reference.num_ranks={reference.num_ranks}: a step has only {_samples(config)}, so "
            f"some ranks would be idle; use at most "
            f"{config.samples_per_step * reference.ranks_per_sample} ranks"
        )


def _engines_have_prompts(config: Config) -> Iterator[str]:
    engines, batches = config.generation.num_engines, config.max_staleness + 1
    prompts = config.prompts_per_step * batches
    if engines > prompts:
        yield (
            f"generation.num_engines={engines}: at most {prompts} prompts are in flight "
            f"(prompts_per_step={config.prompts_per_step} x {batches} batches), so some engines "
            f"would be idle; use at most {prompts} engines, or raise prompts_per_step"
        )


def _group_has_a_baseline(config: Config) -> Iterator[str]:
    advantage = config.algorithm.advantage
    if advantage in GROUP_ADVANTAGES and config.samples_per_prompt < 2:
        yield (
            f"samples_per_prompt={config.samples_per_prompt}: algorithm.advantage={advantage} "
            f"compares the samples of a prompt with each other and needs at least 2; raise it, or "
            f"use algorithm=ppo, which has a critic"
        )


def _critic_warmup_needs_critic(config: Config) -> Iterator[str]:
    steps = config.algorithm.critic_warmup_steps
    if steps and not config.needs_critic:
        yield (
            f"algorithm.critic_warmup_steps={steps}: algorithm.advantage="
            f"{config.algorithm.advantage} has no critic; set it to 0, or use algorithm=ppo"
        )


def _sequence_groups(config: Config) -> Iterator[str]:
    for group, role in model_roles(config):
        size = role.sequence_parallel_size
        if size == 1:
            continue
        name = f"{group}.sequence_parallel_size={size}"
        if role.num_ranks % size:
            yield (
                f"{name}: groups of {size} ranks, and {group}.num_ranks={role.num_ranks} is no "
                f"multiple of it; use {size * -(-role.num_ranks // size)} ranks, or another size"
            )
        if config.model.attention == "eager":
            yield (
                f"{name}: model.attention=eager needs a mask for every pair of tokens, which no "
                f"rank has; use model.attention=sdpa or flash_attention_2"
            )
        if role.layout == "packed":
            yield (
                f"{name}: no rank has the attention mask of packed rows; use {group}.layout=auto, "
                f"which then pads, or sequence_parallel_size=1"
            )
        if group == "reward.model" and role.zero_stage != 3:
            yield (
                f"{name}: with reward.model.zero_stage={role.zero_stage} every rank scores on its "
                f"own; use zero_stage 3, or sequence_parallel_size=1"
            )


def _colocated_groups(config: Config) -> Iterator[str]:
    training, engines = config.training, config.generation.num_engines
    sizes = (training.sequence_parallel_size, training.tensor_parallel_size)
    # An engine and its ranks are one bundle, on one node.
    if config.placement.strategy != "colocated" or max(sizes) == 1:
        return
    name = "sequence_parallel_size" if sizes[0] > 1 else "tensor_parallel_size"
    if training.num_sample_groups % engines:
        yield (
            f"training.{name}={max(sizes)}: with placement=colocated every engine shares "
            f"a node with whole groups of ranks, and {training.num_sample_groups} groups "
            f"(training.num_ranks={training.num_ranks}) cannot be divided among "
            f"generation.num_engines={engines}; use a size that divides the "
            f"{training.num_ranks // engines} ranks of an engine, fewer engines with a larger "
            f"generation.tensor_parallel_size, or placement=disaggregated"
        )


def _samples(config: Config) -> str:
    return (
        f"{config.samples_per_step} samples (prompts_per_step={config.prompts_per_step} x "
        f"samples_per_prompt={config.samples_per_prompt})"
    )


# A token of context, one that is scored, and the one that an engine samples with it.
_SHORTEST_SEQUENCE = 3
_SIZES = ("prompts_per_step", "samples_per_prompt")
_MINI_BATCHES = "algorithm.num_mini_batches"
_RANKS = ("training", "critic", "reference", "reward.model")

BATCH_RULES: tuple[Rule, ...] = (
    Rule(
        about="`max_tokens_per_micro_batch` x `sequence_parallel_size` of every role that runs is "
        "at least `data.max_prompt_tokens` + `generation.max_response_tokens`.",
        keys=(
            "training.max_tokens_per_micro_batch",
            "critic.max_tokens_per_micro_batch",
            "reference.max_tokens_per_micro_batch",
            "reward.model.max_tokens_per_micro_batch",
            *SPLIT_KEYS,
            "data.max_prompt_tokens",
            "generation.max_response_tokens",
            *ROLE_KEYS,
        ),
        problems=_sample_fits_micro_batch,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`data.max_prompt_tokens` + `generation.max_response_tokens` is at least 3.",
        keys=("data.max_prompt_tokens", "generation.max_response_tokens"),
        problems=_probe_has_tokens,
    ),
    Rule(
        about="`algorithm.num_mini_batches` is at most `prompts_per_step` x `samples_per_prompt`.",
        keys=(_MINI_BATCHES, *_SIZES),
        problems=_mini_batches_have_samples,
    ),
    Rule(
        about="`algorithm.policy_loss=kl_cov` needs several optimiser steps per batch, or the "
        "engine's log-probabilities as the old ones.",
        keys=(
            "algorithm.policy_loss",
            "algorithm.num_epochs",
            _MINI_BATCHES,
            "algorithm.old_policy",
            "max_staleness",
        ),
        problems=_distance_from_the_old_policy,
    ),
    Rule(
        about="Every rank of learner and critic gets a sample in every optimiser step, and every "
        "rank of the reference in every step.",
        keys=(
            "training.num_ranks",
            "critic.num_ranks",
            "reference.num_ranks",
            *SPLIT_KEYS,
            _MINI_BATCHES,
            *_SIZES,
            *ROLE_KEYS,
        ),
        problems=_ranks_have_samples,
    ),
    Rule(
        about="`generation.num_engines` is at most `prompts_per_step` x (`max_staleness` + 1).",
        keys=("generation.num_engines", "prompts_per_step", "max_staleness"),
        problems=_engines_have_prompts,
    ),
    Rule(
        about=f"`algorithm.advantage` {', '.join(GROUP_ADVANTAGES)} need "
        "`samples_per_prompt` of at least 2.",
        keys=("algorithm.advantage", "samples_per_prompt"),
        problems=_group_has_a_baseline,
    ),
    Rule(
        about="`algorithm.critic_warmup_steps` needs `algorithm.advantage=gae`.",
        keys=("algorithm.critic_warmup_steps", "algorithm.advantage"),
        problems=_critic_warmup_needs_critic,
    ),
    Rule(
        about="`sequence_parallel_size` above 1 divides `num_ranks`, and needs `model.attention` "
        "sdpa or flash_attention_2 and a `layout` other than packed; `reward.model` needs "
        "`zero_stage` 3 with it.",
        keys=(
            "model.attention",
            *SPLIT_KEYS,
            *(f"{group}.{name}" for group in _RANKS for name in ("num_ranks", "layout")),
            *ROLE_KEYS,
            "reward.model.zero_stage",
        ),
        problems=_sequence_groups,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="With `placement=colocated`, `generation.num_engines` divides `training.num_ranks` / "
        "`training.sequence_parallel_size` or `training.tensor_parallel_size`, if groups have "
        "several ranks.",
        keys=(
            "placement.strategy",
            "generation.num_engines",
            "training.num_ranks",
            "training.sequence_parallel_size",
            "training.tensor_parallel_size",
        ),
        problems=_colocated_groups,
    ),
)
