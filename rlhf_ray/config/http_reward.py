"""A service that scores responses over HTTP, as a part of the reward."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class HttpRewardConfig:
    """How the service at `reward.url` is asked, and what its scores count."""

    name: str = setting("http", "Name of the part: the metric is reward/<name>.")
    weight: float = setting(1.0, "Factor of the part in the reward.")
    token_variable: str | None = setting(
        None,
        "Name of the environment variable that holds the bearer token, where the command is "
        "started; null sends none.",
    )
    connect_s: float = setting(5.0, "Time limit for a connection.", unit="seconds", above=0)
    read_s: float = setting(
        60.0, "Longest wait for the next piece of a reply.", unit="seconds", above=0
    )
    deadline_s: float = setting(
        180.0, "Time limit for one group, all retries included.", unit="seconds", above=0
    )
    max_retries: int = setting(5, "Retries after errors of the connection, 429 and 5xx.", minimum=0)
    first_wait_s: float = setting(
        0.5,
        "Wait before the first retry; it doubles with each, up to 30 s. A Retry-After of the "
        "service counts instead.",
        unit="seconds",
        above=0,
    )
    max_in_flight: int = setting(16, "Groups that are asked about at once.", minimum=1)
    num_cpus: float = setting(0.05, "Ray CPUs of the actor that asks.", unit="CPUs", minimum=0)
