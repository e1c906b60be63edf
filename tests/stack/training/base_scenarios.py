"""Scenarios of checkpoints without the weights that are not trained. See `scenarios`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_ray.config.groups.lora import LoraConfig
from tests.stack.training.adapted_scenarios import FROZEN, LEARNING, saved_pieces
from tests.stack.training.rank import Rank, weights_of
from tests.stack.training.slice_scenarios import in_slices


def base_of_checkpoints(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """A step, checkpoints without the base and with it, and two more steps, from each of them.

    Checkpoints with the base are those of releases before. `other_policy` is another base. The
    trained part is an adapter, if no other is named.
    """
    folder = here.folder / f"base_{name}_{here.world_size}"
    settings = {**LEARNING, **settings}
    with here.learner(**settings) as learner:
        here.update(learner)
        learner.save_checkpoint(folder / "without")
        learner._engine._frozen._are_written = True
        learner.save_checkpoint(folder / "with")
        result = {
            "files": {kind: saved_pieces(folder / kind) for kind in ("with", "without")},
            "trained": sum(1 for p in learner._engine.module.parameters() if p.requires_grad),
            "straight": [here.update(learner) for _ in range(2)],
            "weights": weights_of(learner),
        }
    for kind in ("without", "with"):
        with here.learner(**settings) as learner:
            learner.load_checkpoint(folder / kind)
            learner.save_checkpoint(folder / f"after_{kind}")
            result[kind] = _two_steps(here, learner)
            result[f"after_{kind}"] = saved_pieces(folder / f"after_{kind}")
    with here.on_model("other_policy"):
        with here.learner(**settings) as learner:
            try:
                learner.load_checkpoint(folder / "without")
            except ValueError as error:
                result["refused"] = str(error)
        with here.learner(**settings) as learner:
            learner.load_checkpoint(folder / "with")
            learner.save_checkpoint(folder / "carried")
            result["carried"] = saved_pieces(folder / "carried")
        # Its base is not that of the run's model, which the run would start from again.
        with here.learner(**settings) as learner:
            learner.load_checkpoint(folder / "carried")
            result["resumed_carried"] = _two_steps(here, learner)
    return result


def _two_steps(here: Rank, learner: Any) -> dict[str, Any]:
    return {"next": [here.update(learner) for _ in range(2)], "weights": weights_of(learner)}


BASES: dict[int, dict[str, Callable[[Rank], Any]]] = {
    1: {"bfloat16": partial(base_of_checkpoints, name="bfloat16", dtype="bfloat16")},
    2: {
        f"zero_{stage}": partial(base_of_checkpoints, name=f"zero_{stage}", zero_stage=stage)
        for stage in (2, 3)
    }
    | {
        f"slices_{stage}": in_slices(
            partial(base_of_checkpoints, name=f"slices_{stage}"),
            zero_stage=stage,
            lora=LoraConfig(),
            **FROZEN,
        )
        for stage in (1, 3)
    },
}
