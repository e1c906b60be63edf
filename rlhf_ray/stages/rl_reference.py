"""The reference of a run: who it is, whether it moves, and when."""

from __future__ import annotations

from rlhf_ray.cluster.adapter_roles import PolicyWithoutAdapter
from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.config.run import Config
from rlhf_ray.driver.updates.reference_update import NoRefresh, ReferenceRefresher, RefreshSettings
from rlhf_ray.driver.updates.scorers import NoScores, ScoringRole


def reference_role(config: Config, system: System) -> ScoringRole:
    """Who scores a batch as the reference."""
    if config.reference_is_policy:
        return PolicyWithoutAdapter(system.learner)
    return system.reference or NoScores()


def make_refresher(config: Config, system: System) -> ReferenceRefresher | NoRefresh:
    """What moves the reference of a started system."""
    every_steps = config.algorithm.reference_every
    if every_steps == 0 or system.reference is None:
        return NoRefresh()
    return ReferenceRefresher(
        policy=system.learner,
        reference=system.reference,
        watch=system.supervisor,
        settings=RefreshSettings(
            every_steps=every_steps,
            bucket_bytes=config.publish.bucket_bytes,
            timeout_s=config.deadlines.publish_s,
        ),
    )
