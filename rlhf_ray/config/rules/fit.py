"""Rules of learning from examples: sources, sizes, early stopping."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rlhf_ray.config.keys.readers import is_read
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import FIT_STAGES, TRAINING_STAGES


def _required(config: Config) -> Iterator[str]:
    if not config.model.path:
        yield (
            "model.path is empty: name a folder, a hub model or builtin:arithmetic; stage=pretrain "
            "writes a model to output_dir/model"
        )
    if not config.examples.path:
        yield (
            f"examples.path is empty: name the rows that stage={config.stage.name} learns from, as "
            f"a file, a folder, a hub data set or package.module:iterable; python -m "
            f"rlhf_ray.main stage=prepare_data writes such files"
        )


def _random_weights(config: Config) -> Iterator[str]:
    if config.model.random_weights and config.stage.name != "pretrain":
        yield (
            f"model.random_weights=true: stage={config.stage.name} continues from a trained model; "
            f"set it to false, or use stage=pretrain"
        )


def _sample_fits_micro_batch(config: Config) -> Iterator[str]:
    training, longest = config.training, config.examples.max_tokens
    if training.max_sample_tokens < longest:
        size = training.sequence_parallel_size
        over = f", over training.sequence_parallel_size={size} ranks" if size > 1 else ""
        yield (
            f"training.max_tokens_per_micro_batch={training.max_tokens_per_micro_batch}: the "
            f"longest sample has {longest} tokens (examples.max_tokens){over}; raise it to at "
            f"least {-(-longest // size)}, or lower examples.max_tokens"
        )


def _ranks_have_samples(config: Config) -> Iterator[str]:
    training, samples = config.training, config.fit.batch_size
    if training.num_sample_groups > samples:
        yield (
            f"training.num_ranks={training.num_ranks}: an optimiser step has only {samples} "
            f"samples (fit.batch_size), so some ranks would be idle; use at most "
            f"{samples * training.ranks_per_sample} ranks, or raise fit.batch_size"
        )


def _patience(config: Config) -> Iterator[str]:
    patience = config.fit.patience
    if not patience:
        return
    if not config.fit.eval_every:
        yield (
            f"fit.patience={patience}: with fit.eval_every=0 there is no evaluation between the "
            f"first and the last step; set fit.eval_every to a number of steps, or patience to 0"
        )
    if not config.examples.has_eval_source and not config.examples.held_out_share:
        yield (
            f"fit.patience={patience}: examples.eval_share=0 leaves no held-out rows; "
            f"raise it, set examples.eval_path, or set fit.patience to 0"
        )


def _warmup_ends(config: Config) -> Iterator[str]:
    warmup, most = config.training.warmup_steps, config.fit.max_steps
    if warmup and most is not None and warmup >= most:
        yield (
            f"training.warmup_steps={warmup}: the whole run has at most {most} optimiser steps "
            f"(fit.max_steps), so that the peak learning rate would never be reached; lower it to "
            f"at most {most - 1}, or raise fit.max_steps"
        )


_GROUP_SIZES = ("training.sequence_parallel_size", "training.tensor_parallel_size")
_FORWARD_PASS = ("training.max_tokens_per_micro_batch", "training.sequence_parallel_size")

_LEARNING_RULES: tuple[Rule, ...] = (
    Rule(
        about="Stages that learn from examples need `model.path` and `examples.path`.",
        keys=("stage.name", "model.path", "examples.path"),
        problems=_required,
        stages=FIT_STAGES,
    ),
    Rule(
        about="`model.random_weights` needs `stage=pretrain`.",
        keys=("stage.name", "model.random_weights"),
        problems=_random_weights,
        stages=TRAINING_STAGES,
    ),
    Rule(
        about="Stages that learn from examples: `training.max_tokens_per_micro_batch` x "
        "`training.sequence_parallel_size` is at least `examples.max_tokens`.",
        keys=(*_FORWARD_PASS, "examples.max_tokens"),
        problems=_sample_fits_micro_batch,
        stages=FIT_STAGES,
    ),
    Rule(
        about="Stages that learn from examples: `training.num_ranks` is at most `fit.batch_size` "
        "x `training.sequence_parallel_size` x `training.tensor_parallel_size`.",
        keys=("training.num_ranks", *_GROUP_SIZES, "fit.batch_size"),
        problems=_ranks_have_samples,
        stages=FIT_STAGES,
    ),
    Rule(
        about="Stages that learn from examples: `training.warmup_steps` is less than "
        "`fit.max_steps`.",
        keys=("training.warmup_steps", "fit.max_steps"),
        problems=_warmup_ends,
        stages=FIT_STAGES,
    ),
    Rule(
        about="`fit.patience` needs `fit.eval_every` and held-out rows (`examples.eval_path` or "
        "`examples.eval_share`).",
        keys=("fit.patience", "fit.eval_every", "examples.eval_path", "examples.eval_share"),
        problems=_patience,
        stages=FIT_STAGES,
    ),
)


def _pair_fits_micro_batch(config: Config) -> Iterator[str]:
    budget, longest = config.training.max_tokens_per_micro_batch, config.examples.max_tokens
    held = -(-longest // config.training.sequence_parallel_size)
    if held <= budget < 2 * held:
        yield (
            f"training.max_tokens_per_micro_batch={budget}: the answers to a prompt are scored in "
            f"one forward pass, two or more of up to {longest} tokens each (examples.max_tokens); "
            f"raise it to at least {2 * held}, or lower examples.max_tokens"
        )


def _nothing_averaged(config: Config) -> Iterator[str]:
    decay = config.training.ema_decay
    if decay is not None:
        yield (
            f"training.ema_decay={decay:g}: only a policy is averaged, and stage=reward_model "
            f"trains no policy; set it to null"
        )


_REWARD_MODEL_RULES: tuple[Rule, ...] = (
    Rule(
        about="`training.max_tokens_per_micro_batch` x `training.sequence_parallel_size` is at "
        "least twice `examples.max_tokens`, because the answers to a prompt stay in one forward "
        "pass.",
        keys=(*_FORWARD_PASS, "examples.max_tokens"),
        problems=_pair_fits_micro_batch,
        stages=("reward_model",),
    ),
    Rule(
        about="`training.ema_decay` is null: only a policy is averaged.",
        keys=("training.ema_decay",),
        problems=_nothing_averaged,
        stages=("reward_model",),
    ),
)


def _one_way_of_holding_out(config: Config) -> Iterator[str]:
    examples = config.examples
    if examples.has_eval_source and examples.eval_share:
        key = "eval_split" if examples.eval_path is None else "eval_path"
        yield (
            f"examples.eval_share={examples.eval_share}: the held-out rows have a separate source "
            f"(examples.{key}={vars(examples)[key]}), so no share of examples.path is held out; "
            f"set examples.eval_share or examples.{key} to null"
        )


def _held_out_rows_are_others(config: Config) -> Iterator[str]:
    examples = config.examples
    same_path = examples.eval_path in (None, examples.path)
    same_split = examples.eval_split in (None, examples.split)
    if examples.has_eval_source and same_path and same_split:
        key = "eval_split" if examples.eval_path is None else "eval_path"
        yield (
            f"examples.{key}={vars(examples)[key]}: names the rows that are trained on; name other "
            f"rows, or set it to null and hold out a share with examples.eval_share"
        )


def _columns_differ(config: Config) -> Iterator[str]:
    examples = config.examples
    names = ("prompt_column", "answer_column", "chosen_column", "rejected_column")
    # The answers of `sft` may well be the chosen ones of a preference set.
    read = [name for name in names if is_read(f"examples.{name}", config.stage.name)]
    for one, other in itertools.combinations(read, 2):
        column = vars(examples)[one]
        if column == vars(examples)[other]:
            yield (
                f"examples.{other}={column}: is also examples.{one}; name a different column "
                f"for each"
            )


_EXAMPLES_RULES: tuple[Rule, ...] = (
    Rule(
        about="`examples.eval_share` is null or 0 if `examples.eval_path` or "
        "`examples.eval_split` is set.",
        keys=("examples.eval_share", "examples.eval_path", "examples.eval_split"),
        problems=_one_way_of_holding_out,
        stages=FIT_STAGES,
    ),
    Rule(
        about="`examples.eval_path` and `examples.eval_split` name other rows than "
        "`examples.path` and `examples.split`.",
        keys=(
            "examples.eval_path",
            "examples.path",
            "examples.eval_split",
            "examples.split",
        ),
        problems=_held_out_rows_are_others,
        stages=FIT_STAGES,
    ),
    Rule(
        about="The columns of prompt, answer, chosen and rejected answer differ, as far as a stage "
        "reads them.",
        keys=(
            "examples.prompt_column",
            "examples.answer_column",
            "examples.chosen_column",
            "examples.rejected_column",
        ),
        problems=_columns_differ,
        stages=FIT_STAGES,
    ),
)

FIT_RULES: tuple[Rule, ...] = _EXAMPLES_RULES + _LEARNING_RULES + _REWARD_MODEL_RULES
