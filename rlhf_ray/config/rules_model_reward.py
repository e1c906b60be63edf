"""Rules of the reward model that scores responses."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import SCORING_STAGES, Rule
from rlhf_ray.config.run import Config


def _moments(config: Config) -> Iterator[str]:
    model = config.reward.model
    if not config.needs_reward_model:
        return
    given = {"mean": model.mean, "standard_deviation": model.standard_deviation}
    named = [f"reward.model.{name}={value:g}" for name, value in given.items() if value is not None]
    if named and not model.normalize:
        yield (
            f"reward.model.normalize=false: the scores are taken as they are, but {named[0]}; set "
            f"normalize to true, or mean and standard_deviation to null"
        )
    elif len(named) == 1:
        yield (
            f"{named[0]}: normalising takes both mean and standard_deviation; set the other one "
            f"too, or this one to null"
        )


def _stage(config: Config) -> Iterator[str]:
    stage = config.reward.model.zero_stage
    if config.needs_reward_model and stage in (1, 2):
        yield (
            f"reward.model.zero_stage={stage}: a frozen model has neither optimizer states nor "
            f"gradients to shard; use 0, which makes every rank a whole model, or 3 to shard its "
            f"parameters over the ranks"
        )


MODEL_REWARD_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reward.model.mean` and `reward.model.standard_deviation` are given together, and "
        "only with `reward.model.normalize`.",
        keys=(
            "reward.model.path",
            "reward.model.normalize",
            "reward.model.mean",
            "reward.model.standard_deviation",
        ),
        problems=_moments,
        stages=(*SCORING_STAGES, "serve_reward"),
    ),
    Rule(
        about="`reward.model.zero_stage` is 0, a whole model on every rank, or 3.",
        keys=("reward.model.path", "reward.model.zero_stage"),
        problems=_stage,
        stages=SCORING_STAGES,
    ),
)
