"""Every size of a batch, computed once and printed, so that nobody does it by hand."""

from __future__ import annotations

from rlhf_ray.config.batch_row import BatchRow
from rlhf_ray.config.batch_row import ceil as _ceil
from rlhf_ray.config.batch_row import row as _row
from rlhf_ray.config.batch_table_fit import fit_rows
from rlhf_ray.config.rules.rule import model_roles, trained_roles
from rlhf_ray.config.run import Config


def batch_table(config: Config) -> list[BatchRow]:
    """Sizes from prompts or samples to optimiser steps and micro-batches, top to bottom."""
    if config.is_fit:
        return fit_rows(config)
    return [*_rollout_rows(config), *_update_rows(config), *_role_rows(config), *_run_rows(config)]


def render_rows(rows: list[BatchRow]) -> str:
    """The table as aligned plain text, without a final newline."""
    name_width = max(len(row.name) for row in rows)
    value_width = max(len(row.value) for row in rows)
    return "\n".join(
        f"{row.name:<{name_width}}  {row.value:>{value_width}}  {row.computed_from}".rstrip()
        for row in rows
    )


def _rollout_rows(config: Config) -> list[BatchRow]:
    generation, batches = config.generation, config.max_staleness + 1
    started = config.sampling.prompts_to_start(config.prompts_per_step)
    prompts = started * batches
    slots = generation.num_engines * generation.max_num_seqs
    return [
        _row("prompts per step", config.prompts_per_step, "prompts_per_step"),
        *_oversampled_rows(config, started),
        _row("samples per prompt", config.samples_per_prompt, "samples_per_prompt"),
        _row(
            "samples per step",
            config.samples_per_step,
            "prompts_per_step x samples_per_prompt",
        ),
        _row("batches in flight", batches, "max_staleness + 1"),
        _row("prompts per engine", _ceil(prompts, generation.num_engines), "in flight, at most"),
        _row(
            "samples generated at once",
            min(slots, prompts * config.samples_per_prompt),
            f"at most generation.num_engines x max_num_seqs = {slots:,}",
        ),
        _row(
            "longest sample",
            config.max_sequence_tokens,
            "data.max_prompt_tokens + generation.max_response_tokens, in tokens",
        ),
    ]


def _oversampled_rows(config: Config, started: int) -> list[BatchRow]:
    if started == config.prompts_per_step:
        return []
    return [_row("prompts started per step", started, "prompts_per_step x sampling.oversample")]


def _update_rows(config: Config) -> list[BatchRow]:
    parts = config.algorithm.num_mini_batches
    return [
        _row(
            "optimiser steps per step",
            config.optimizer_steps_per_batch,
            "algorithm.num_epochs x algorithm.num_mini_batches",
        ),
        _row(
            "samples per optimiser step",
            _ceil(config.samples_per_step, parts),
            "samples per step / algorithm.num_mini_batches, at most",
        ),
        _row(
            "tokens per optimiser step",
            _ceil(config.samples_per_step, parts) * config.max_sequence_tokens,
            "samples per optimiser step x longest sample, at most",
        ),
        *_text_rows(config),
    ]


def _text_rows(config: Config) -> list[BatchRow]:
    if not config.mixes_texts:
        return []
    texts = config.texts
    return [
        _row("texts per optimiser step", texts.texts_per_step, "texts.texts_per_step"),
        _row(
            "tokens of texts per optimiser step",
            texts.texts_per_step * texts.max_tokens,
            f"texts per optimiser step x texts.max_tokens = {texts.max_tokens:,}, at most",
        ),
    ]


def _role_rows(config: Config) -> list[BatchRow]:
    trained = [group for group, _ in trained_roles(config)]
    rows = []
    for group, role in model_roles(config):
        if group == "reward.model":
            rows.append(_reward_model_row(config))
            continue
        parts = config.algorithm.num_mini_batches if group in trained else 1
        name = "learner" if group == "training" else group
        samples = _ceil(_ceil(config.samples_per_step, parts), role.num_ranks)
        fitting = role.max_tokens_per_micro_batch // config.max_sequence_tokens
        work = "optimiser step" if group in trained else "step"
        rows += [
            _row(
                f"{name}: samples per rank",
                samples,
                f"per {work}, over {group}.num_ranks = {role.num_ranks}, about",
            ),
            _row(
                f"{name}: micro-batches per rank",
                _ceil(samples, fitting),
                f"per {work}, at most; {group}.max_tokens_per_micro_batch = "
                f"{role.max_tokens_per_micro_batch:,} holds {fitting:,} of full length",
            ),
        ]
    return rows


def _reward_model_row(config: Config) -> BatchRow:
    """It scores groups as they come, each by itself."""
    model = config.reward.model
    samples = config.samples_per_prompt + config.algorithm.num_greedy
    if model.zero_stage == 3:
        samples = _ceil(samples, model.num_ranks)
    fitting = model.max_tokens_per_micro_batch // config.max_sequence_tokens
    return _row(
        "reward model: micro-batches per rank",
        _ceil(samples, fitting),
        f"per group, at most; reward.model.max_tokens_per_micro_batch = "
        f"{model.max_tokens_per_micro_batch:,} holds {fitting:,} of full length",
    )


def _run_rows(config: Config) -> list[BatchRow]:
    return [
        _row("steps", config.num_steps, "num_steps"),
        _row(
            "optimiser steps in all",
            config.total_optimizer_steps,
            f"steps x optimiser steps per step; the first {config.training.warmup_steps} warm up",
        ),
        _row(
            "samples in all",
            config.num_steps * config.samples_per_step,
            "steps x samples per step",
        ),
    ]
