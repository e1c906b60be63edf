"""Controllers that adapt coefficients, baseline and reward scales from step to step."""

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
from rlhf_ray.driver.updates.reward_scales import RewardScales
from rlhf_ray.records import Coefficients


@dataclass(frozen=True, kw_only=True, slots=True)
class Controllers:
    """The states of all controllers. Immutable: every step makes a new object."""

    kl: KLController
    entropy: EntropyController
    baseline: MovingBaseline
    scales: RewardScales

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients of the next step."""
        return Coefficients(
            kl=self.kl.coefficient,
            entropy=entropy_coefficient(self.entropy),
            reward_baseline=self.baseline.value,
            reward_scales=self.scales.by_task,
        )

    @classmethod
    def start(cls, algorithm: AlgorithmConfig) -> Controllers:
        """The controllers before the first step."""
        return cls(
            kl=_kl_controller(algorithm),
            entropy=_entropy_controller(algorithm),
            baseline=start_moving_baseline(algorithm.baseline_decay),
            scales=RewardScales.start(
                algorithm.reward_normalization, tolerance=algorithm.reward_tolerance
            ),
        )

    def observe(self, batch: Batch) -> Controllers:
        """Adapt to a batch before the step on it: only the reward scales move."""
        return dataclasses.replace(self, scales=self.scales.observe(batch))

    def advance(self, metrics: dict[str, float], *, num_samples: int) -> Controllers:
        """Adapt to the metrics of a step on `num_samples` samples.

        Steps without a policy update (critic warm-up) report no entropy: the entropy controller
        stays where it is. Runs without a reference report no KL, and no controller follows it.
        """
        entropy = self.entropy
        if "policy/entropy" in metrics:
            entropy = update_entropy_controller(entropy, observed_entropy=metrics["policy/entropy"])
        return dataclasses.replace(
            self,
            kl=update_kl_controller(
                self.kl, observed_kl=metrics.get("kl/reference", 0.0), num_samples=num_samples
            ),
            entropy=entropy,
            baseline=update_moving_baseline(self.baseline, mean_reward=metrics["reward/mean"]),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: a string stands for it."""
        controllers = {"kl": self.kl, "entropy": self.entropy, "baseline": self.baseline}
        saved: dict[str, Any] = {
            part: {name: _to_json(value) for name, value in dataclasses.asdict(controller).items()}
            for part, controller in controllers.items()
        }
        return saved | {"scales": self.scales.state_dict()}

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Controllers:
        """Restore from `state_dict`."""
        parts = {
            part: {name: _from_json(value) for name, value in saved[part].items()}
            for part in ("kl", "entropy", "baseline")
        }
        # Checkpoints of releases without reward normalisation lack this key.
        scales = saved.get("scales", {"mode": "none", "moments": {}})
        return cls(
            kl=KLController(**parts["kl"]),
            entropy=EntropyController(**parts["entropy"]),
            baseline=MovingBaseline(**parts["baseline"]),
            scales=RewardScales.load(scales),
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
