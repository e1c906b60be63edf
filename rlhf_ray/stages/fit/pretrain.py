"""stage=pretrain: every token of raw text is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.stages.fit.space import describe_fit
from rlhf_ray.stages.fit.stage import runs
from rlhf_ray.stages.request_checks import check_training
from rlhf_ray.stages.stage import Stage

if TYPE_CHECKING:
    from rlhf_ray.records.supervised import LabelledTokens
    from rlhf_ray.stages.fit.inputs import FitStage


def _stage() -> FitStage[LabelledTokens]:
    from rlhf_ray.cluster.roles.fit import SftActor
    from rlhf_ray.data.examples import load_texts
    from rlhf_ray.objectives.text import spread_samples
    from rlhf_ray.stages.fit.inputs import FitStage

    return FitStage(load=load_texts, spread=spread_samples, actor_class=SftActor)


STAGE = Stage(name="pretrain", describe=describe_fit, run=runs(_stage), check=check_training)
