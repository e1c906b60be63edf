"""Rules of rollout selection and of texts mixed into updates."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config


def _groups_can_vary(config: Config) -> Iterator[str]:
    selection = config.rollout_selection
    wanted = {
        "rollout_selection.dynamic=true": selection.dynamic,
        f"rollout_selection.replay_groups_per_step={selection.replay_groups_per_step}": (
            selection.replay_groups_per_step > 0
        ),
    }
    for setting, is_on in wanted.items():
        if is_on and config.samples_per_prompt < 2:
            yield (
                f"{setting}: needs groups with differing rewards, but "
                f"samples_per_prompt={config.samples_per_prompt} makes groups of one; raise "
                f"samples_per_prompt to at least 2, or switch {setting.partition('=')[0]} off"
            )


def _resume_is_exact(config: Config) -> Iterator[str]:
    selection = config.rollout_selection
    is_promised = config.max_staleness == 0 and config.checkpoint.every_steps > 0
    if not (is_promised and selection.exact_resume):
        return
    if selection.oversample > 1:
        yield (
            f"rollout_selection.oversample={selection.oversample:g}: the groups that finish first "
            f"differ from run to run, so a resumed run would differ from an uninterrupted one, "
            f"although max_staleness=0 with checkpoint.every_steps="
            f"{config.checkpoint.every_steps} promises exact resume; accept the difference "
            "with rollout_selection.exact_resume=false, or switch "
            "rollout_selection.oversample off"
        )


def _early_scores(config: Config) -> Iterator[str]:
    number, selection = config.reference.prompts_at_once, config.rollout_selection
    if not number:
        return
    reasons = {
        "algorithm.kl_coefficient": (
            not config.starts_reference,
            "no reference with ranks of its own is started",
        ),
        "rollout_selection.oversample": (
            selection.oversample > 1,
            "which groups make up a batch is known when it is complete",
        ),
        "rollout_selection.dynamic": (
            selection.dynamic,
            "which groups make up a batch is known when it is complete",
        ),
        "rollout_selection.replay_groups_per_step": (
            selection.replay_groups_per_step > 0,
            "groups of earlier batches are scored with those of this one",
        ),
        "algorithm.reference_every": (
            config.algorithm.reference_every > 0 and config.max_staleness > 0,
            "a batch of a later step would be scored by a reference of an earlier one",
        ),
    }
    for key, (is_so, reason) in reasons.items():
        if is_so:
            yield f"reference.prompts_at_once={number}: {reason} ({key}); set it to 0"


def _overlong_buffer(config: Config) -> Iterator[str]:
    buffer, longest = (
        config.rollout_selection.overlong_buffer_tokens,
        config.generation.max_response_tokens,
    )
    if buffer >= longest:
        yield (
            f"rollout_selection.overlong_buffer_tokens={buffer}: is not shorter than "
            f"generation.max_response_tokens={longest}, so every response would be punished; "
            f"lower it to at most {longest - 1}, or to 0 to switch it off"
        )


def _overlong_parts(config: Config) -> Iterator[str]:
    selection = config.rollout_selection
    if selection.overlong_filter and config.generation.ignore_eos:
        yield (
            "rollout_selection.overlong_filter=true: with generation.ignore_eos=true every "
            "response is cut "
            "off at the limit and would be excluded; set one of them to false"
        )


def _task_weights(config: Config) -> Iterator[str]:
    for name, weight in config.rollout_selection.task_weights.items():
        if not math.isfinite(weight) or weight < 0:
            yield (
                f"rollout_selection.task_weights.{name}={weight}: a weight of advantages must be a "
                f"finite number of at least 0; 0 excludes the task from the gradient"
            )
    weights = config.rollout_selection.task_weights
    if weights and config.data.source_column is None:
        yield (
            f"rollout_selection.task_weights={weights}: without data.source_column all prompts "
            "belong to "
            f"one task; name the column with the task, or remove the weights"
        )


def _replay_is_off_policy(config: Config) -> Iterator[str]:
    selection, steps = config.rollout_selection, config.optimizer_steps_per_batch
    groups = selection.replay_groups_per_step
    if groups == 0:
        return
    if steps > 1:
        yield (
            f"rollout_selection.replay_groups_per_step={groups}: the old log-probabilities of a "
            "replayed "
            f"group are those of the engine that sampled it, and {steps} optimiser steps per batch "
            f"(algorithm.num_epochs={config.algorithm.num_epochs} x algorithm.num_mini_batches="
            f"{config.algorithm.num_mini_batches}) take the learner's; set both to 1, or "
            f"replay_groups_per_step to 0"
        )
    if selection.replay_max_staleness <= config.max_staleness:
        yield (
            f"rollout_selection.replay_max_staleness={selection.replay_max_staleness}: with "
            "max_staleness="
            f"{config.max_staleness} a group may be too stale for replay once it has been "
            f"trained on; raise it to at least {config.max_staleness + 1}"
        )
    if selection.replay_capacity < groups:
        yield (
            f"rollout_selection.replay_capacity={selection.replay_capacity}: is less than "
            f"rollout_selection.replay_groups_per_step={groups}; raise the capacity or lower the "
            "groups"
        )


_CONTROL_RULES: tuple[Rule, ...] = (
    Rule(
        about="`rollout_selection.dynamic` and `rollout_selection.replay_groups_per_step` need "
        "`samples_per_prompt` "
        "of at least 2.",
        keys=(
            "rollout_selection.dynamic",
            "rollout_selection.replay_groups_per_step",
            "samples_per_prompt",
        ),
        problems=_groups_can_vary,
    ),
    Rule(
        about="`rollout_selection.oversample` above 1 needs "
        "`rollout_selection.exact_resume=false` if exact resume is promised: `max_staleness` 0 "
        "with `checkpoint.every_steps` above 0.",
        keys=(
            "rollout_selection.oversample",
            "rollout_selection.exact_resume",
            "max_staleness",
            "checkpoint.every_steps",
        ),
        problems=_resume_is_exact,
    ),
    Rule(
        about="`rollout_selection.overlong_buffer_tokens` is less than "
        "`generation.max_response_tokens`.",
        keys=("rollout_selection.overlong_buffer_tokens", "generation.max_response_tokens"),
        problems=_overlong_buffer,
    ),
    Rule(
        about="`rollout_selection.overlong_filter` needs `generation.ignore_eos` false.",
        keys=("rollout_selection.overlong_filter", "generation.ignore_eos"),
        problems=_overlong_parts,
    ),
    Rule(
        about="`rollout_selection.task_weights` are finite, at least 0, and need "
        "`data.source_column`.",
        keys=("rollout_selection.task_weights", "data.source_column"),
        problems=_task_weights,
    ),
    Rule(
        about="`rollout_selection.replay_groups_per_step` needs one optimiser step per batch, "
        "`rollout_selection.replay_max_staleness` above `max_staleness`, and at most "
        "`rollout_selection.replay_capacity` groups.",
        keys=(
            "rollout_selection.replay_groups_per_step",
            "rollout_selection.replay_max_staleness",
            "rollout_selection.replay_capacity",
            "max_staleness",
            "algorithm.num_epochs",
            "algorithm.num_mini_batches",
        ),
        problems=_replay_is_off_policy,
    ),
)


def _source_and_weight(config: Config) -> Iterator[str]:
    coefficient, path = config.algorithm.ptx_coefficient, config.texts.path
    if coefficient > 0 and not path:
        yield (
            f"texts.path is empty: algorithm.ptx_coefficient={coefficient:g} adds the loss of "
            f"texts to the policy's; name a file, a folder, a hub data set or "
            f"package.module:iterable, as in texts.path=texts.jsonl, or set the coefficient to 0"
        )
    if path and coefficient == 0:
        yield (
            f"texts.path={path}: with algorithm.ptx_coefficient=0 nothing would be learnt from "
            f"the texts; set a coefficient, as in algorithm.ptx_coefficient=0.1, or leave "
            f"texts.path empty"
        )


def _text_fits_micro_batch(config: Config) -> Iterator[str]:
    longest, most = config.texts.max_tokens, config.training.max_sample_tokens
    if config.mixes_texts and longest > most:
        yield (
            f"texts.max_tokens={longest}: a forward pass holds {most} tokens "
            f"(training.max_tokens_per_micro_batch={config.training.max_tokens_per_micro_batch} x "
            f"training.sequence_parallel_size={config.training.sequence_parallel_size}); lower "
            f"max_tokens to at most {most}, or raise one of these"
        )


def _ranks_have_texts(config: Config) -> Iterator[str]:
    texts, training = config.texts.texts_per_step, config.training
    groups = training.num_sample_groups
    if config.mixes_texts and texts < groups:
        yield (
            f"texts.texts_per_step={texts}: some of training.num_ranks={training.num_ranks} ranks "
            f"would get no text; raise it to at least {groups}"
        )


_EARLY_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reference.prompts_at_once` above 0 needs a reference with ranks of its own and "
        "batches whose groups are known when they are scored: no over-sampling, dynamic sampling "
        "or replay, and with `max_staleness` above 0 a reference that stays.",
        keys=(
            "reference.prompts_at_once",
            "rollout_selection.oversample",
            "rollout_selection.dynamic",
            "rollout_selection.replay_groups_per_step",
            "algorithm.reference_every",
            "max_staleness",
        ),
        problems=_early_scores,
    ),
)
_WEIGHT = "algorithm.ptx_coefficient"


_TEXT_RULES: tuple[Rule, ...] = (
    Rule(
        about="`algorithm.ptx_coefficient` above 0 needs `texts.path`, and `texts.path` needs it.",
        keys=(_WEIGHT, "texts.path"),
        problems=_source_and_weight,
    ),
    Rule(
        about="`texts.max_tokens` is at most `training.max_tokens_per_micro_batch` x "
        "`training.sequence_parallel_size`.",
        keys=(
            _WEIGHT,
            "texts.max_tokens",
            "training.max_tokens_per_micro_batch",
            "training.sequence_parallel_size",
        ),
        problems=_text_fits_micro_batch,
    ),
    Rule(
        about="`texts.texts_per_step` is at least `training.num_ranks` / "
        "`training.sequence_parallel_size`.",
        keys=(
            _WEIGHT,
            "texts.texts_per_step",
            "training.num_ranks",
            "training.sequence_parallel_size",
        ),
        problems=_ranks_have_texts,
    ),
)

ROLLOUT_SELECTION_RULES: tuple[Rule, ...] = _CONTROL_RULES + _EARLY_RULES + _TEXT_RULES
