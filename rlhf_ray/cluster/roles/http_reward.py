"""A service that scores over HTTP, as a kind of reward (`reward.url`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.cluster.resource_plan import Resources
from rlhf_ray.cluster.roles.base import Role, start_actors
from rlhf_ray.cluster.roles.rewards import (
    AsyncScorerActor,
    ReplicatedScorer,
    Report,
    Scoring,
    ScoringContext,
    ScoringKind,
)
from rlhf_ray.config.bearer_token import service_token
from rlhf_ray.config.errors import RequestError

if TYPE_CHECKING:
    from rlhf_ray.config.bearer_token import BearerToken
    from rlhf_ray.config.groups.reward import HttpRewardConfig
    from rlhf_ray.data.prompts.load import PromptSet

_ROLE = "http_reward"
# Fields that a service may report about itself, in addition to its status.
_REPORTED = ("model", "fingerprint")


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpRewardSettings:
    """Settings of the client; see `rewards.http.scorer.HttpScorer`."""

    url: str
    http: HttpRewardConfig
    token: BearerToken | None


def _scoring(context: ScoringContext) -> Scoring | None:
    reward = context.reward
    if reward.url is None:
        return None
    settings = HttpRewardSettings(url=reward.url, http=reward.http, token=service_token(reward))
    role = Role(
        resources=Resources(role=_ROLE, num_actors=1, num_cpus=reward.http.num_cpus, num_gpus=0.0),
        actor_class=HttpRewardActor,
        settings=lambda _: settings,
        start=start_actors,
    )
    return Scoring(roles=(role,), pool=lambda by_role: ReplicatedScorer(by_role[_ROLE]))


def check_service(context: ScoringContext, _: PromptSet, report: Report) -> None:
    """Refuse a service that does not answer; a run without `reward.url` passes.

    A service that is starting is waited for, as long as `reward.http` allows.

    Raises:
        RequestError: its answer, or why there is none.
    """
    import asyncio

    from rlhf_ray.rewards.http.client import CallFailed
    from rlhf_ray.rewards.http.scorer import ask_health

    reward = context.reward
    if reward.url is None:
        return
    try:
        answer = asyncio.run(ask_health(reward.url, reward.http, service_token(reward)))
    except CallFailed as failed:
        hint = (
            "; the token is wrong, or reward.http.token_variable names none"
            if failed.status in (401, 403)
            else "; start the service before the run, or mend reward.url"
        )
        raise RequestError(f"reward.url={reward.url}: {failed}{hint}") from failed
    words = ", ".join(f"{name} {answer[name]}" for name in _REPORTED if name in answer)
    report(f"the service at {reward.url} answers{': ' + words if words else ''}")


HTTP_REWARD = ScoringKind(name="http", scoring=_scoring, check=check_service)


class HttpRewardActor(AsyncScorerActor):
    """The client of the service at `reward.url`."""

    def __init__(self, settings: HttpRewardSettings) -> None:
        super().__init__()
        from rlhf_ray.rewards.http.scorer import HttpScorer

        self._worker = HttpScorer(url=settings.url, http=settings.http, token=settings.token)

    async def start(self) -> None:
        """Do nothing; the answer says that the process is up."""
