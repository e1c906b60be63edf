"""Pre-training: every token of raw text is predicted."""

from __future__ import annotations

from rlhf_ray.cluster.actors import Imitator
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import load_texts
from rlhf_ray.stages.fit import FitStage, run_fit
from rlhf_ray.training.supervised import spread_samples


def run(config: Config) -> int:
    """See `run_fit`."""
    return run_fit(
        config,
        FitStage(
            load=load_texts, spread=spread_samples, actor_class=Imitator, settings=lambda _: {}
        ),
    )
