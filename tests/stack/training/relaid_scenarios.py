"""Checkpoints that another layout goes on from: ranks, ZeRO stage, groups of ranks.

The processes of one rank and of two write first and then read each other's folders, so that neither
waits for a folder that the other writes only after waiting itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.publish.bucket import pack_buckets
from tests.stack.training.ema_policy_scenarios import _ema_of
from tests.stack.training.ema_reference_scenarios import follow, whole_weights
from tests.stack.training.rank import Rank, weights_of
from tests.stack.training.ranking_scenarios import MAX_TOKENS, own_rankings

WAIT_S = 240.0
LORA = LoraConfig(r=4, alpha=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Ranks of a role and the settings that may change with them."""

    ranks: int
    stage: int
    groups_of: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        groups = f"_groups_of_{self.groups_of}" if self.groups_of > 1 else ""
        extra = "_".join(self.settings)
        return f"{self.ranks}_zero_{self.stage}{groups}{extra and '_'}{extra}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A checkpoint and the layouts that go on from it.

    Attributes:
        settings: of the role, the same in all layouts.
        rel: largest relative difference of metrics. Gradients of adapters in bfloat16 differ at
            stage 3 by 2e-4 from those of other stages, with equal weights and losses.
    """

    name: str
    role: str = "learner"
    settings: dict[str, Any] = field(default_factory=dict)
    saved: Layout
    resumed: tuple[Layout, ...]
    rel: float = 1e-6

    def folder(self, here: Rank) -> Path:
        return here.folder / "relaid" / self.name


def _case(name: str, saved: Layout, *resumed: Layout, **more: Any) -> Case:
    return Case(name=name, saved=saved, resumed=resumed, **more)


def _two(stage: int, **settings: Any) -> Layout:
    return Layout(ranks=2, stage=stage, settings=settings)


def _one(stage: int, **settings: Any) -> Layout:
    return Layout(ranks=1, stage=stage, settings=settings)


QUICK = (
    _case("two_zero_2", _two(2), _one(1)),
    _case("one_zero_0", _one(0), _two(3)),
)
_BFLOAT16 = {"dtype": "bfloat16"}
_ADAPTED = {"lora": LORA, "warmup_steps": 0}
LONG = (
    *QUICK,
    _case("two_zero_0", _two(0), _one(0), _one(3), _two(2)),
    _case("two_zero_1", _two(1), _one(0), _one(2), _two(3)),
    _case("two_zero_3", _two(3), _one(0), _one(1), _one(3), _two(0), _two(1)),
    _case("one_zero_1", _one(1), _two(0), _two(1), _two(2), _two(3)),
    _case("one_zero_3", _one(3), _two(0), _two(2), _two(3), _one(2)),
    _case("offloaded", _two(2, offload_optimizer=True), _one(1), _two(3, offload_optimizer=True)),
    _case("all_offloaded", _two(3, offload_optimizer=True, offload_parameters=True), _one(0)),
    *(
        _case(f"bfloat16_{saved.name}", saved, *resumed, settings=_BFLOAT16)
        for saved, resumed in (
            (_two(1), (_one(1), _one(2), _two(3))),
            (_two(3), (_one(0), _two(2))),
            (_one(0), (_two(0), _two(3))),
            (_one(2), (_two(1), _two(3, offload_optimizer=True))),
        )
    ),
    *(
        _case(f"adapted_{saved.name}", saved, *resumed, settings=_ADAPTED)
        for saved, resumed in ((_two(3), (_one(0), _two(1))), (_one(1), (_two(3), _two(0))))
    ),
    _case(
        "adapted_bfloat16",
        _two(3),
        *(_one(0), _two(1)),
        settings={**_ADAPTED, **_BFLOAT16},
        rel=1e-2,
    ),
    _case("adapted_critic", _two(2), _one(0), _two(3), role="critic", settings={"lora": LORA}),
    _case("frozen", _two(2), _one(0), _two(3), settings={"freeze_layers": 1, "ema_decay": 0.9}),
    _case("ema", _two(3), _one(1), _two(0), settings={"ema_decay": 0.9}),
    _case("ema_bfloat16", _one(1), _two(3), settings={"ema_decay": 0.9, **_BFLOAT16}),
    _case("critic_two", _two(3), _one(1), _two(2), role="critic"),
    _case("critic_one", _one(0), _two(3), _two(1), role="critic"),
    _case("rewards_two", _two(3), _one(0), role="reward_trainer"),
    _case("rewards_one", _one(1), _two(3), role="reward_trainer"),
    _case(
        "groups",
        Layout(ranks=2, stage=3, groups_of=2),
        _one(1),
        _two(1),
    ),
    _case("no_groups", _one(2), Layout(ranks=2, stage=1, groups_of=2)),
)


def _started(here: Rank, case: Case, layout: Layout) -> Any:
    make = getattr(here, case.role)
    settings = {**case.settings, **layout.settings, "zero_stage": layout.stage}
    if case.role == "reward_trainer":
        settings["max_tokens_per_micro_batch"] = MAX_TOKENS
    return make(**settings)


def _update(here: Rank, case: Case, role: Any) -> dict[str, float]:
    if case.role == "reward_trainer":
        return role.update([own_rankings(here, "padded")])
    # One sample a pass on any number of ranks: bfloat16 rounds by the shape of a pass.
    own = here.experience.lengths.shape[0]
    single = tuple((sample,) if sample < own else () for sample in range(5))
    experience = replace(here.experience, micro_batches=single)
    if case.role == "critic":
        return role.update([experience])
    return role.update([experience], coefficients=here.coefficients)


def _state(case: Case, role: Any) -> dict[str, Tensor]:
    """Whole weights, and the EMA."""
    state = {} if case.role == "critic" else weights_of(role)
    if case.settings.get("ema_decay"):
        state |= {f"ema of {name}": value for name, value in _ema_of(role).items()}
    return state


def save(here: Rank, *, case: Case) -> dict[str, Any]:
    """A step, a checkpoint, and the next two steps."""
    with ExitStack() as stack:
        stack.enter_context(here.in_groups(case.saved.groups_of))
        role = stack.enter_context(_started(here, case, case.saved))
        first = _update(here, case, role)
        role.save_checkpoint(case.folder(here))
        if here.rank == 0:
            (case.folder(here) / "whole").touch()
        result = {"first": first, "state": _state(case, role)}
        if case.role == "reward_trainer":
            result["moments"] = _moments(role)
        result["next"] = [_update(here, case, role) for _ in range(2)]
        result["last"] = _state(case, role)
        return result


def resume(here: Rank, *, case: Case, layout: Layout) -> dict[str, Any]:
    """The same two steps from the checkpoint, in another layout."""
    _wait_for(case.folder(here) / "whole")
    with ExitStack() as stack:
        stack.enter_context(here.in_groups(layout.groups_of))
        role = stack.enter_context(_started(here, case, layout))
        role.load_checkpoint(case.folder(here))
        result: dict[str, Any] = {"state": _state(case, role)}
        if case.role == "reward_trainer":
            result["moments"] = _moments(role)
        result["next"] = [_update(here, case, role) for _ in range(2)]
        result["last"] = _state(case, role)
        return result


def save_reference(here: Rank, **settings: Any) -> dict[str, Any]:
    """A reference that has followed a policy, at stage 3 or whole."""
    folder = here.folder / "relaid" / "reference"
    with here.learner(zero_stage=2, warmup_steps=0) as learner:
        here.update(learner)
        buckets = list(pack_buckets(learner.named_weights(), 1 << 20))
    with here.reference(decay=0.5, **settings) as role:
        follow(role, buckets)
        role.save_checkpoint(folder)
        if here.rank == 0:
            (folder / "whole").touch()
        return {"state": whole_weights(role)}


def resume_reference(here: Rank, **settings: Any) -> dict[str, Any]:
    folder = here.folder / "relaid" / "reference"
    _wait_for(folder / "whole")
    with here.reference(decay=0.5, **settings) as role:
        role.load_checkpoint(folder)
        return {"state": whole_weights(role)}


def _moments(trainer: Any) -> list[float]:
    moments = trainer._moments()
    return [moments.mean, moments.squares, float(moments.count)]


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written in {WAIT_S} s"
        time.sleep(0.05)


def resumed_name(case: Case, layout: Layout) -> str:
    return f"{case.name}_on_{layout.name}"


def _table(cases: tuple[Case, ...]) -> dict[int, dict[str, Callable[[Rank], Any]]]:
    """All that a process writes, and then all that it reads."""
    return {
        size: {
            **{case.name: partial(save, case=case) for case in cases if case.saved.ranks == size},
            **{
                resumed_name(case, layout): partial(resume, case=case, layout=layout)
                for case in cases
                for layout in case.resumed
                if layout.ranks == size
            },
        }
        for size in (1, 2)
    }


RELAID = _table(QUICK)
RELAID_ALL = _table(LONG)
RELAID_ALL[2]["reference"] = partial(save_reference, zero_stage=3, dtype="bfloat16")
RELAID_ALL[2]["reference_on_2"] = partial(resume_reference, zero_stage=0, dtype="bfloat16")
RELAID_ALL[1]["reference_on_1"] = partial(resume_reference, zero_stage=0, dtype="bfloat16")
RELAID_ALL[1]["reference_on_1_zero_3"] = partial(resume_reference, zero_stage=3, dtype="bfloat16")
