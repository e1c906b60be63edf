"""The engines of a run as its parts see them: a fixed group, or a fleet that replaces lost ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_ray.cluster.engines.group import GeneratorGroup
from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.driver.fleet.accounts import RecoveryAccounts
from rlhf_ray.driver.fleet.engine_fleet import EngineFleet
from rlhf_ray.driver.fleet.parts import FleetSettings
from rlhf_ray.driver.fleet.transport import FleetTransport
from rlhf_ray.driver.healing.parts import NoHealing
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.publish.base import WeightTransport
from rlhf_ray.publish.publisher import Publisher
from rlhf_ray.stages.rl.settings import RlSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEngines:
    """The engines of a run.

    Attributes:
        sampling: engines that take requests, and receive the probe.
        fleet: the same, where lost engines are replaced; None where a loss ends the run.
        accounts: of all losses; None likewise.
    """

    sampling: GeneratorGroup | EngineFleet
    fleet: EngineFleet | None = None
    accounts: RecoveryAccounts | None = None

    def following(self, transport: WeightTransport, system: System) -> WeightTransport:
        """The transport to the engines that are there at each publish.

        Args:
            transport: from the learner to all engines; opened here.

        Raises:
            RunFailed: the ends did not connect.
        """
        if self.fleet is None:
            transport.open(system.learner, system.generators)
            return transport
        following = FleetTransport(transport, self.fleet, system.learner)
        following.open(system.learner, self.fleet.muster(takes_new=True))
        return following

    def restored_by(
        self,
        publisher: Publisher,
        transport: WeightTransport,
        trained: TrainedRoles | NoHealing,
    ) -> None:
        """If no engine serves, `publisher` brings the weights to the next one."""
        if self.fleet is not None:
            assert isinstance(transport, FleetTransport)
            again = publisher.publish_again
            self.fleet.restore_with(lambda: trained.do(transport.restore, again))

    def retire(self) -> None:
        """No engine is needed any more: from now on a loss is no event of the run."""
        if self.fleet is not None:
            self.fleet.retire()

    def metrics(self) -> dict[str, float]:
        """Metrics of recovery since the last call; none where a loss ends the run."""
        return {} if self.fleet is None else self.fleet.metrics()


def make_engines(settings: RlSettings, system: System, say: Callable[[str], None]) -> RunEngines:
    """The engines of a started system. `say` shows a sentence."""
    recovery = settings.recovery
    if recovery.max_restarts == 0:
        return RunEngines(sampling=system.generators)
    accounts = RecoveryAccounts(folder=settings.output, say=say)
    fleet = EngineFleet(
        system.generators,
        system.replacements,
        system.supervisor,
        settings=FleetSettings(
            max_restarts=recovery.max_restarts,
            min_engines=recovery.min_engines,
            silence_s=recovery.silence_s,
            start_s=settings.deadlines.start_s,
        ),
        accounts=accounts,
    )
    system.supervisor.tend(fleet)
    return RunEngines(sampling=fleet, fleet=fleet, accounts=accounts)
