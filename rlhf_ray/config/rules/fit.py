"""Rules of the stages that learn from examples."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.groups.fit import FIT_STAGES
from rlhf_ray.config.rules.rule import TRAINING_STAGES, Rule
from rlhf_ray.config.run import Config


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
            f"model.random_weights=true: stage={config.stage.name} goes on from a model that has "
            f"learnt; set it to false, or use stage=pretrain"
        )


def _sample_fits_micro_batch(config: Config) -> Iterator[str]:
    budget, longest = config.training.max_tokens_per_micro_batch, config.examples.max_tokens
    if budget < longest:
        yield (
            f"training.max_tokens_per_micro_batch={budget}: the longest sample has {longest} "
            f"tokens (examples.max_tokens); raise it to at least {longest}, or lower "
            f"examples.max_tokens"
        )


def _ranks_have_samples(config: Config) -> Iterator[str]:
    ranks, samples = config.training.num_ranks, config.fit.samples_per_step
    if ranks > samples:
        yield (
            f"training.num_ranks={ranks}: an optimiser step has only {samples} samples "
            f"(fit.samples_per_step), so some ranks would never have work; use at most {samples} "
            f"ranks, or raise fit.samples_per_step"
        )


def _patience(config: Config) -> Iterator[str]:
    patience = config.fit.patience
    if not patience:
        return
    if not config.fit.eval_every:
        yield (
            f"fit.patience={patience}: with fit.eval_every=0 nothing is evaluated before the "
            f"last step; set fit.eval_every to a number of steps, or fit.patience to 0"
        )
    if not config.examples.has_eval_source and not config.examples.held_out_share:
        yield (
            f"fit.patience={patience}: examples.eval_share=0 leaves no held-out rows to "
            f"stop by; raise it, name them with examples.eval_path, or set fit.patience to 0"
        )


FIT_RULES: tuple[Rule, ...] = (
    Rule(
        about="Stages that learn from examples: `model.path` and `examples.path` are not empty.",
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
        about="Stages that learn from examples: `training.max_tokens_per_micro_batch` is at least "
        "`examples.max_tokens`: a sample is never split.",
        keys=("training.max_tokens_per_micro_batch", "examples.max_tokens"),
        problems=_sample_fits_micro_batch,
        stages=FIT_STAGES,
    ),
    Rule(
        about="Stages that learn from examples: `training.num_ranks` is at most "
        "`fit.samples_per_step`.",
        keys=("training.num_ranks", "fit.samples_per_step"),
        problems=_ranks_have_samples,
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
