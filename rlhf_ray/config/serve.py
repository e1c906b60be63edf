"""A reward model as a service."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# Where only processes of the same machine can ask.
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


@dataclass
class ServeConfig:
    """`stage=serve_reward`: where the model of `reward.model` answers, and to whom."""

    host: str = setting("127.0.0.1", "Address to listen at.")
    port: int = setting(8000, "Port; 0 takes a free one.", minimum=0, maximum=65535)
    token_variable: str | None = setting(
        None,
        "Name of the environment variable with the bearer token that requests must bring; null "
        "asks for none, which only an address of this machine allows.",
    )
    max_request_bytes: int = setting(
        16 * 1024 * 1024, "Longest request; a longer one is refused.", unit="bytes", minimum=1024
    )
