"""What the algorithm adapts from step to step: coefficients, baseline, scales of rewards."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from rlhf_ray.algorithms.advantages.moving_baseline import (
    MovingBaseline,
    start_moving_baseline,
    update_moving_baseline,
)
from rlhf_ray.algorithms.entropy_controller import (
    EntropyController,
    entropy_coefficient,
    fixed_entropy_controller,
    update_entropy_controller,
)
from rlhf_ray.algorithms.kl_controller import (
    KLController,
    adaptive_kl_controller,
    fixed_kl_controller,
    scheduled_kl_controller,
    update_kl_controller,
)
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.updates.reward_scales import (
    RewardScales,
    load_reward_scales,
    observe_rewards,
    save_reward_scales,
    start_reward_scales,
)
from rlhf_ray.records import Coefficients


@dataclass(frozen=True, kw_only=True, slots=True)
class Controllers:
    """The controllers' states; a new one after every step. `scales` move with every batch."""

    kl: KLController
    entropy: EntropyController
    baseline: MovingBaseline
    scales: RewardScales

    @property
    def coefficients(self) -> Coefficients:
        """What they set for the next step."""
        return Coefficients(
            kl=self.kl.coefficient,
            entropy=entropy_coefficient(self.entropy),
            reward_baseline=self.baseline.value,
            reward_scales=self.scales.by_task,
        )


def start_controllers(algorithm: AlgorithmConfig) -> Controllers:
    """Before the first step."""
    return Controllers(
        kl=_kl_controller(algorithm),
        entropy=_entropy_controller(algorithm),
        baseline=start_moving_baseline(algorithm.baseline_decay),
        scales=start_reward_scales(algorithm.reward_normalization),
    )


def observe(state: Controllers, batch: Batch) -> Controllers:
    """Before a step on this batch."""
    return dataclasses.replace(state, scales=observe_rewards(state.scales, batch))


def advance(state: Controllers, metrics: dict[str, float], *, num_samples: int) -> Controllers:
    """After a step with these metrics on so many samples.

    Steps without a policy update (critic warm-up) have no entropy, runs without a reference no
    KL: the controller that needs it stays where it is.
    """
    entropy = state.entropy
    if "policy/entropy" in metrics:
        entropy = update_entropy_controller(entropy, observed_entropy=metrics["policy/entropy"])
    return dataclasses.replace(
        state,
        kl=update_kl_controller(
            state.kl, observed_kl=metrics.get("kl/reference", 0.0), num_samples=num_samples
        ),
        entropy=entropy,
        baseline=update_moving_baseline(state.baseline, mean_reward=metrics["reward/mean"]),
    )


def save_controllers(state: Controllers) -> dict[str, Any]:
    """As JSON can hold it, which has no infinity."""
    controllers = {"kl": state.kl, "entropy": state.entropy, "baseline": state.baseline}
    saved: dict[str, Any] = {
        part: {name: _to_json(value) for name, value in dataclasses.asdict(controller).items()}
        for part, controller in controllers.items()
    }
    return saved | {"scales": save_reward_scales(state.scales)}


def load_controllers(saved: dict[str, Any]) -> Controllers:
    """What `save_controllers` made."""
    parts = {
        part: {name: _from_json(value) for name, value in saved[part].items()}
        for part in ("kl", "entropy", "baseline")
    }
    # Absent in a checkpoint of a release that normalised nothing.
    scales = saved.get("scales", {"mode": "none", "moments": {}})
    return Controllers(
        kl=KLController(**parts["kl"]),
        entropy=EntropyController(**parts["entropy"]),
        baseline=MovingBaseline(**parts["baseline"]),
        scales=load_reward_scales(scales),
    )


def _kl_controller(algorithm: AlgorithmConfig) -> KLController:
    if algorithm.kl_controller == "adaptive":
        return adaptive_kl_controller(
            algorithm.kl_coefficient, target=algorithm.kl_target, horizon=algorithm.kl_horizon
        )
    if algorithm.kl_controller == "scheduled":
        return scheduled_kl_controller(
            algorithm.kl_coefficient,
            final=algorithm.kl_final,
            num_steps=algorithm.kl_schedule_steps,
        )
    return fixed_kl_controller(algorithm.kl_coefficient)


def _entropy_controller(algorithm: AlgorithmConfig) -> EntropyController:
    if algorithm.entropy_target is None:
        return fixed_entropy_controller(algorithm.entropy_coefficient)
    return EntropyController(
        coefficient=algorithm.entropy_coefficient,
        target=algorithm.entropy_target,
        step_size=algorithm.entropy_step,
        observed=math.inf,
    )


def _to_json(value: float) -> float | str:
    return str(value) if math.isinf(value) else value


def _from_json(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
