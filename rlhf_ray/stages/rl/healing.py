"""The roles that train as the parts of a run see them: healed after a loss, or not."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.driver.fleet.transport import FleetTransport
from rlhf_ray.driver.healing.parts import NO_HEALING, HealingSettings, NoHealing, StatefulRole
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.driver.run_checkpoints import RunCheckpoints
from rlhf_ray.driver.updates.trainer import Trainer
from rlhf_ray.losses import LossKeepers
from rlhf_ray.publish.base import WeightTransport
from rlhf_ray.stages.rl.engines import RunEngines
from rlhf_ray.stages.rl.settings import RlSettings


def make_trained(
    settings: RlSettings, system: System, engines: RunEngines
) -> TrainedRoles | NoHealing:
    """Learner and critic; they bear losses from `attach` on."""
    recovery = settings.recovery
    if engines.fleet is None or engines.accounts is None:
        return NO_HEALING
    roles: dict[str, StatefulRole] = {"learner": system.learner}
    if system.critic:
        roles["critic"] = system.critic
    algorithm = settings.algorithm
    trained = TrainedRoles(
        roles,
        system.restarts,
        system.supervisor,
        settings=HealingSettings(
            max_restarts=recovery.max_restarts,
            snapshot_every=recovery.snapshot_every,
            restore_s=settings.deadlines.checkpoint_s,
            averages_reference=algorithm.reference_every > 0 and algorithm.reference_decay > 0,
        ),
        accounts=engines.accounts,
    )
    system.supervisor.tend(LossKeepers([engines.fleet, trained]))
    return trained


def attach(
    trained: TrainedRoles | NoHealing,
    *,
    trainer: Trainer,
    saver: RunCheckpoints,
    transport: WeightTransport,
) -> None:
    """Give the roles that train their first state, and the parts that they are healed with."""
    if isinstance(trained, NoHealing):
        return
    assert isinstance(transport, FleetTransport)
    forget: list[Callable[[], None]] = [transport.source_restarted, saver.give_up_writing]
    trained.attach(replay=trainer.replay, saved=saver, forget=forget)
