"""Scenarios of ranks that compute every sample together. See `scenarios`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig
from rlhf_ray.training.engine.ulysses import UlyssesAttention
from rlhf_ray.training.roles.reward_scorer import RewardScorer
from tests.stack.training.adapted_scenarios import adapted, frozen
from tests.stack.training.ema_policy_scenarios import ema_policy
from tests.stack.training.mixture import with_texts
from tests.stack.training.preference_scenarios import judge, prefer
from tests.stack.training.rank import Rank, weights_of
from tests.stack.training.ranking_scenarios import rank_answers
from tests.stack.training.samples import groups_of
from tests.stack.training.scenarios import (
    in_chunks,
    of_sequences,
    policy_gradient,
    scores,
    two_steps,
    value_gradient,
    whole_distributions,
)
from tests.stack.training.sft_scenarios import learn_from_texts

Scenario = Callable[[Rank], dict[str, Any]]
# Runs a scenario with settings of its role.
Scene = Callable[..., dict[str, Any]]


def in_groups(size: int, scenario: Scene, **settings: Any) -> Scenario:
    """Run a scenario with groups of `size` ranks."""

    def run(here: Rank) -> dict[str, Any]:
        with here.in_groups(size):
            return scenario(here, **settings)

    return run


def learner_scores(here: Rank, **settings: Any) -> dict[str, Any]:
    return scores(here, here.learner, **settings)


def reference_scores(here: Rank, **settings: Any) -> dict[str, Any]:
    return scores(here, here.reference, **settings)


def reward_scores(here: Rank, **settings: Any) -> dict[str, Any]:
    """Scores of one reward model that all ranks hold."""
    model = ModelRewardConfig(
        **here._role_settings(settings), path=str(here.folder / "reward_model"), normalize=False
    )
    policy = ModelConfig(path=str(here.folder / "policy"))
    scorer = RewardScorer(reward_model=model, model=policy, seed=0, timeout_s=60.0)
    (group,) = groups_of(here.data, (0, 5))
    with here._started(scorer) as scorer:
        return {"scores": [float(outcome) for outcome in scorer.score(group)]}


def without_exchange(here: Rank) -> dict[str, Any]:
    """Ranks whose attention sees their own piece alone."""

    def plain(self: UlyssesAttention, *states: Any, **settings: Any) -> Any:
        return self._plain(*states, **settings)

    with here.in_groups(2), patch.object(UlyssesAttention, "__call__", plain):
        try:
            with here.learner():
                return {"error": ""}
        except ValueError as error:
            return {"error": str(error)}


def resumed_in_other_groups(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Three steps in groups of 2, and the last two again from a checkpoint, without groups."""
    folder = here.folder / f"checkpoint_groups_{name}_{here.world_size}"
    with here.in_groups(2), here.learner(**settings) as learner:
        here.update(learner)
        learner.save_checkpoint(folder)
        straight = [here.update(learner) for _ in range(2)]
        weights = weights_of(learner)
    result: dict[str, Any] = {"straight": straight, "straight_weights": weights}
    for size in (1, 2):
        with here.in_groups(size), here.learner(**settings) as learner:
            learner.load_checkpoint(folder)
            result[f"resumed_{size}"] = [here.update(learner) for _ in range(2)]
            result[f"resumed_weights_{size}"] = weights_of(learner)
    return result


# By name: compared with one rank. The stages of all that every test lane runs.
QUICK: dict[str, tuple[Scene, tuple[int, ...]]] = {
    "policy_gradient": (policy_gradient, (0, 1, 2, 3)),
    "value_gradient": (value_gradient, (3,)),
}
MORE: dict[str, tuple[Scene, tuple[int, ...]]] = {
    "policy_gradient": (policy_gradient, (0, 1, 2, 3)),
    "value_gradient": (value_gradient, (0, 1, 2, 3)),
    "two_steps": (two_steps, (0, 1, 2, 3)),
    "of_sequences": (of_sequences, (1, 3)),
    "whole_distributions": (whole_distributions, (0, 3)),
    "in_chunks": (in_chunks, (0, 3)),
    "gradient_checkpointing": (partial(policy_gradient, gradient_checkpointing=True), (0, 3)),
    "with_texts": (with_texts, (2, 3)),
    "sft": (learn_from_texts, (0, 3)),
    "rank": (rank_answers, (0, 3)),
    "prefer": (prefer, (0, 3)),
    "judge": (judge, (2,)),
    "scores": (learner_scores, (0, 3)),
    "reference": (reference_scores, (0, 3)),
    "frozen": (frozen, (0, 3)),
}
# They write files under a name.
NAMED: dict[str, tuple[Scene, tuple[int, ...]]] = {
    "adapted": (adapted, (2, 3)),
    "ema": (ema_policy, (1, 3)),
}
BFLOAT16 = partial(two_steps, dtype="bfloat16")


def _in_groups(size: int, table: dict[str, tuple[Scene, tuple[int, ...]]]) -> dict[str, Scenario]:
    return {
        f"{name}_groups_of_{size}_zero_{stage}": in_groups(size, scenario, zero_stage=stage)
        for name, (scenario, stages) in table.items()
        for stage in stages
    }


DIVIDED = {**_in_groups(2, QUICK), "without_exchange": without_exchange}
MATRIX: dict[int, dict[str, Scenario]] = {
    1: {
        **{name: scenario for name, (scenario, _) in MORE.items()},
        **{name: partial(scenario, name=name) for name, (scenario, _) in NAMED.items()},
        "bfloat16": BFLOAT16,
        "reward": reward_scores,
    },
    4: {
        **_in_groups(2, MORE),
        **{
            f"{name}_groups_of_2_zero_{stage}": in_groups(
                2, scenario, name=f"{name}_{stage}", zero_stage=stage
            )
            for name, (scenario, stages) in NAMED.items()
            for stage in stages
        },
        # More ranks than the model has key-value heads.
        **_in_groups(4, {name: (MORE[name][0], (3,)) for name in ("two_steps", "value_gradient")}),
        **_in_groups(4, {"two_steps": (two_steps, (1,))}),
        **_in_groups(2, {"bfloat16": (BFLOAT16, (2, 3))}),
        **_in_groups(2, {"reward": (reward_scores, (3,))}),
        **{
            f"resumed_zero_{stage}": partial(
                resumed_in_other_groups, name=f"zero_{stage}", zero_stage=stage
            )
            for stage in (1, 3)
        },
    },
}
