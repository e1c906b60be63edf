"""The batch table: every size of a batch, computed from the configuration and printed."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_ray.config.by_stage.default_rates import default_rates
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.config.rules.rule import model_roles, trained_roles
from rlhf_ray.config.run import Config


class BatchRow(NamedTuple):
    """One size: its name, its value, and its computation from the keys."""

    name: str
    value: str
    computed_from: str


def row(name: str, value: int, computed_from: str) -> BatchRow:
    return BatchRow(name, f"{value:,}", computed_from)


def ceil(whole: int, parts: int) -> int:
    """Divide and round up."""
    return -(-whole // parts)


def batch_table(config: Config) -> list[BatchRow]:
    """Compute the sizes from prompts or samples down to optimiser steps and micro-batches.

    The last rows are the learning rates.
    """
    if config.is_fit:
        return [*fit_rows(config), *_rate_rows(config)]
    return [
        *_rollout_rows(config),
        *_update_rows(config),
        *_role_rows(config),
        *_run_rows(config),
        *_rate_rows(config),
    ]


def render_rows(rows: list[BatchRow]) -> str:
    """Render the table as aligned plain text, without a final newline."""
    name_width = max(len(row.name) for row in rows)
    value_width = max(len(row.value) for row in rows)
    return "\n".join(
        f"{row.name:<{name_width}}  {row.value:>{value_width}}  {row.computed_from}".rstrip()
        for row in rows
    )


def _rollout_rows(config: Config) -> list[BatchRow]:
    generation, batches = config.generation, config.max_staleness + 1
    started = config.rollout_selection.prompts_to_start(config.prompts_per_step)
    prompts = started * batches
    slots = generation.num_engines * generation.max_num_seqs
    return [
        row("prompts per step", config.prompts_per_step, "prompts_per_step"),
        *_oversampled_rows(config, started),
        row("samples per prompt", config.samples_per_prompt, "samples_per_prompt"),
        row(
            "samples per step",
            config.samples_per_step,
            "prompts_per_step x samples_per_prompt",
        ),
        row("batches in flight", batches, "max_staleness + 1"),
        row("prompts per engine", ceil(prompts, generation.num_engines), "in flight, at most"),
        row(
            "samples generated at once",
            min(slots, prompts * config.samples_per_prompt),
            f"at most generation.num_engines x max_num_seqs = {slots:,}",
        ),
        row(
            "longest sample",
            config.max_sequence_tokens,
            "data.max_prompt_tokens + generation.max_response_tokens, in tokens",
        ),
    ]


def _oversampled_rows(config: Config, started: int) -> list[BatchRow]:
    if started == config.prompts_per_step:
        return []
    return [
        row("prompts started per step", started, "prompts_per_step x rollout_selection.oversample")
    ]


def _update_rows(config: Config) -> list[BatchRow]:
    parts = config.algorithm.num_mini_batches
    return [
        row(
            "optimiser steps per step",
            config.optimizer_steps_per_batch,
            "algorithm.num_epochs x algorithm.num_mini_batches",
        ),
        row(
            "samples per optimiser step",
            ceil(config.samples_per_step, parts),
            "samples per step / algorithm.num_mini_batches, at most",
        ),
        row(
            "tokens per optimiser step",
            ceil(config.samples_per_step, parts) * config.max_sequence_tokens,
            "samples per optimiser step x longest sample, at most",
        ),
        *_text_rows(config),
    ]


def _text_rows(config: Config) -> list[BatchRow]:
    if not config.mixes_texts:
        return []
    texts = config.texts
    return [
        row("texts per optimiser step", texts.texts_per_step, "texts.texts_per_step"),
        row(
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
        samples = ceil(ceil(config.samples_per_step, parts), role.num_sample_groups)
        fitting = _fitting(role, config.max_sequence_tokens)
        work = "optimiser step" if group in trained else "step"
        rows += [
            row(
                f"{name}: samples per rank",
                samples,
                f"per {work}, over {_ranks(group, role)}, about",
            ),
            row(
                f"{name}: micro-batches per rank",
                ceil(samples, fitting),
                f"per {work}, at most; {group}.max_tokens_per_micro_batch = "
                f"{role.max_tokens_per_micro_batch:,} holds {fitting:,} of full length",
            ),
        ]
    return rows


def _fitting(role: RoleConfig, longest: int) -> int:
    """Samples of full length in one forward pass."""
    return role.max_tokens_per_micro_batch // ceil(longest, role.sequence_parallel_size)


def _ranks(group: str, role: RoleConfig) -> str:
    ranks = f"{group}.num_ranks = {role.num_ranks:,}"
    for name in ("sequence_parallel_size", "tensor_parallel_size"):
        size = getattr(role, name)
        ranks += f" / {group}.{name} = {size:,}" if size > 1 else ""
    return ranks


def _reward_model_row(config: Config) -> BatchRow:
    """Micro-batches of the reward model, which scores every group separately."""
    model = config.reward.model
    samples = config.samples_per_prompt + config.algorithm.num_greedy
    if model.is_one_model:
        samples = ceil(samples, model.num_sample_groups)
    fitting = _fitting(model, config.max_sequence_tokens)
    return row(
        "reward model: micro-batches per rank",
        ceil(samples, fitting),
        f"per group, at most; reward.model.max_tokens_per_micro_batch = "
        f"{model.max_tokens_per_micro_batch:,} holds {fitting:,} of full length",
    )


def _run_rows(config: Config) -> list[BatchRow]:
    return [
        row("steps", config.num_steps, "num_steps"),
        row(
            "optimiser steps in all",
            config.total_optimizer_steps,
            f"steps x optimiser steps per step; the first {config.training.warmup_steps} warm up",
        ),
        row(
            "samples in all",
            config.num_steps * config.samples_per_step,
            "steps x samples per step",
        ),
    ]


def _rate_rows(config: Config) -> list[BatchRow]:
    defaults, rows = default_rates(config), []
    for group, role in trained_roles(config):
        name = "learner" if group == "training" else group
        rate, key = role.peak_learning_rate, f"{group}.learning_rate"
        by = f"{key}, at its peak"
        if rate == defaults[key]:
            adapter = ", with an adapter" if role.lora.is_on else ""
            by = f"{by}; the default of stage={config.stage.name}{adapter}"
        rows.append(BatchRow(f"{name}: learning rate", f"{rate:g}", by))
        ends = ""
        if role.schedule != "constant":
            ends = f", down to {role.min_learning_rate_ratio:g} of the peak at the last step"
        rows.append(BatchRow(f"{name}: schedule", role.schedule, f"{group}.schedule{ends}"))
        steps = "optimiser steps, linear"
        rows.append(row(f"{name}: warm-up", role.warmup_steps, f"{group}.warmup_steps, {steps}"))
    return rows


# Stages whose samples are several answers to one prompt: name of a sample, least answers.
_COMPARED = {"reward_model": ("rankings", 2), "preference": ("rankings", 2)}
_SINGLE = ("samples", 1)


def fit_rows(config: Config) -> list[BatchRow]:
    """Compute the sizes from samples down to micro-batches."""
    fit, training, longest = config.fit, config.training, config.examples.max_tokens
    per_rank = ceil(fit.batch_size, training.num_sample_groups)
    noun, answers = _sample(config)
    fitting = _fitting(training, longest) // answers
    per_one, pairs = (" x 2 answers", ", of pairs") if answers > 1 else ("", "")
    rows = [
        row(f"{noun} per optimiser step", fit.batch_size, "fit.batch_size"),
        row("longest sample", longest, "examples.max_tokens, in tokens"),
        row(
            "tokens per optimiser step",
            fit.batch_size * answers * longest,
            f"{noun} per optimiser step{per_one} x longest sample, at most{pairs}",
        ),
        row(
            f"learner: {noun} per rank",
            per_rank,
            f"per optimiser step, over {_ranks('training', training)}, about",
        ),
        row(
            "learner: micro-batches per rank",
            ceil(per_rank, fitting),
            f"per optimiser step, at most; training.max_tokens_per_micro_batch = "
            f"{training.max_tokens_per_micro_batch:,} holds {fitting:,} of full length{pairs}",
        ),
        row("epochs", fit.num_epochs, "fit.num_epochs"),
    ]
    if fit.max_steps is not None:
        rows.append(row("optimiser steps in all", fit.max_steps, "fit.max_steps, at most"))
    return rows


def _sample(config: Config) -> tuple[str, int]:
    """Name of a sample, and its least number of answers."""
    if config.stage.name == "preference" and config.preference.is_of_feedback:
        return _SINGLE
    return _COMPARED.get(config.stage.name, _SINGLE)
