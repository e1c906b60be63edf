"""Rules of the stage that makes a reward model."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config


def _pair_fits_micro_batch(config: Config) -> Iterator[str]:
    budget, longest = config.training.max_tokens_per_micro_batch, config.examples.max_tokens
    if longest <= budget < 2 * longest:
        yield (
            f"training.max_tokens_per_micro_batch={budget}: the answers to a prompt are scored in "
            f"one forward pass, two or more of up to {longest} tokens each (examples.max_tokens); "
            f"raise it to at least {2 * longest}, or lower examples.max_tokens"
        )


def _nothing_averaged(config: Config) -> Iterator[str]:
    decay = config.training.ema_decay
    if decay is not None:
        yield (
            f"training.ema_decay={decay:g}: only the policy is averaged, and stage=reward_model "
            f"trains none; set it to null"
        )


REWARD_MODEL_RULES: tuple[Rule, ...] = (
    Rule(
        about="`training.max_tokens_per_micro_batch` is at least twice `examples.max_tokens`: the "
        "answers to a prompt are never apart.",
        keys=("training.max_tokens_per_micro_batch", "examples.max_tokens"),
        problems=_pair_fits_micro_batch,
        stages=("reward_model",),
    ),
    Rule(
        about="`training.ema_decay` is null: the policy alone is averaged.",
        keys=("training.ema_decay",),
        problems=_nothing_averaged,
        stages=("reward_model",),
    ),
)
