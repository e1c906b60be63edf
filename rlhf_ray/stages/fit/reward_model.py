"""stage=reward_model: a scalar head learns which answers are better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.stages.fit.space import describe_fit
from rlhf_ray.stages.request_checks import check_training
from rlhf_ray.stages.stage import Stage

if TYPE_CHECKING:
    from rlhf_ray.config.groups.data import ExamplesConfig
    from rlhf_ray.data.examples import ExampleSet
    from rlhf_ray.records.preferences import Ranking


def _run(config: Config) -> int:
    from rlhf_ray.cluster.roles.fit import RewardModelTrainerActor
    from rlhf_ray.data.examples import load_rankings
    from rlhf_ray.objectives.rankings import spread_rankings
    from rlhf_ray.stages.fit.inputs import FitStage
    from rlhf_ray.stages.fit.run import run_fit

    use_margins = config.reward_model.use_margins
    training = config.training

    def load(examples: ExamplesConfig, tokenizer, *, seed: int) -> ExampleSet[Ranking]:
        loaded = load_rankings(examples, tokenizer, seed=seed)
        check_budget(
            loaded,
            training.max_tokens_per_micro_batch,
            ranks_per_sample=training.sequence_parallel_size,
        )
        return loaded

    return run_fit(
        config,
        FitStage(
            load=load,
            spread=lambda rows, plan: spread_rankings(rows, plan, use_margins=use_margins),
            actor_class=RewardModelTrainerActor,
            is_generative=False,
        ),
    )


def check_budget(rankings: ExampleSet[Ranking], budget: int, *, ranks_per_sample: int = 1) -> None:
    """Refuse a ranking that no forward pass can hold, before any worker starts.

    Any ranking may share a step with the largest one, so all are held to it.

    Raises:
        RequestError: says which budget would do.
    """
    from rlhf_ray.objectives.rankings import check_fits

    for side in (rankings.train, rankings.held_out):
        largest = max((len(ranking.answers) for ranking in side), default=0)
        for ranking in side:
            try:
                check_fits(ranking, largest, budget, ranks_per_sample=ranks_per_sample)
            except ValueError as error:
                raise RequestError(str(error)) from error


STAGE = Stage(name="reward_model", describe=describe_fit, run=_run, check=check_training)
