"""Rules of preference training."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.groups.fit import FEEDBACK_LOSS, SMOOTHED_LOSSES
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config

_STAGES = ("preference",)


def _label_smoothing(config: Config) -> Iterator[str]:
    smoothing, loss = config.preference.label_smoothing, config.preference.loss
    if smoothing and loss not in SMOOTHED_LOSSES:
        yield (
            f"preference.label_smoothing={smoothing:g}: preference.loss={loss} has no label "
            f"smoothing; set it to 0, or the loss to {' or '.join(SMOOTHED_LOSSES)}"
        )


def _only_of_rankings(config: Config) -> Iterator[str]:
    preference = config.preference
    if not preference.is_of_feedback:
        return
    if preference.divide_by_length:
        yield (
            "preference.divide_by_length=true: preference.loss=kto sums over the tokens of an "
            "answer; set it to false, or choose a loss for rankings"
        )
    if preference.sft_coefficient:
        yield (
            f"preference.sft_coefficient={preference.sft_coefficient:g}: preference.loss=kto has "
            f"no best answers to imitate; set it to 0, or choose a loss for rankings"
        )


def _only_of_feedback(config: Config) -> Iterator[str]:
    preference = config.preference
    for key, weight in (
        ("desirable_weight", preference.desirable_weight),
        ("undesirable_weight", preference.undesirable_weight),
    ):
        if weight != 1 and not preference.is_of_feedback:
            yield (
                f"preference.{key}={weight:g}: preference.loss={preference.loss} learns from "
                f"rankings, not from answers labelled good or bad; leave it at 1, or set "
                f"preference.loss=kto"
            )


def _samples_of_a_step(config: Config) -> Iterator[str]:
    samples = config.fit.batch_size
    if config.preference.is_of_feedback and samples < 2:
        yield (
            f"fit.batch_size={samples}: preference.loss={FEEDBACK_LOSS} compares every "
            f"answer with the mean over the step's samples; raise it to at least 2"
        )


def _pair_fits_micro_batch(config: Config) -> Iterator[str]:
    budget, longest = config.training.max_tokens_per_micro_batch, config.examples.max_tokens
    held = -(-longest // config.training.sequence_parallel_size)
    if not config.preference.is_of_feedback and held <= budget < 2 * held:
        yield (
            f"training.max_tokens_per_micro_batch={budget}: the answers of a ranking stay in "
            f"one forward pass, two or more of up to {longest} tokens each (examples.max_tokens); "
            f"raise it to at least {2 * held}, or lower examples.max_tokens"
        )


PREFERENCE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`preference.label_smoothing` needs `preference.loss` sigmoid or robust.",
        keys=("preference.loss", "preference.label_smoothing"),
        problems=_label_smoothing,
        stages=_STAGES,
    ),
    Rule(
        about="`preference.divide_by_length` and `preference.sft_coefficient` need a loss for "
        "rankings, not kto.",
        keys=("preference.loss", "preference.divide_by_length", "preference.sft_coefficient"),
        problems=_only_of_rankings,
        stages=_STAGES,
    ),
    Rule(
        about="`preference.desirable_weight` and `preference.undesirable_weight` need "
        "`preference.loss=kto`.",
        keys=(
            "preference.loss",
            "preference.desirable_weight",
            "preference.undesirable_weight",
        ),
        problems=_only_of_feedback,
        stages=_STAGES,
    ),
    Rule(
        about="With a loss for rankings, `training.max_tokens_per_micro_batch` x "
        "`training.sequence_parallel_size` is at least twice `examples.max_tokens`, because the "
        "answers of a ranking stay in one forward pass.",
        keys=(
            "preference.loss",
            "training.max_tokens_per_micro_batch",
            "training.sequence_parallel_size",
            "examples.max_tokens",
        ),
        problems=_pair_fits_micro_batch,
        stages=_STAGES,
    ),
    Rule(
        about="`preference.loss=kto` needs at least 2 `fit.batch_size`.",
        keys=("preference.loss", "fit.batch_size"),
        problems=_samples_of_a_step,
        stages=_STAGES,
    ),
)
