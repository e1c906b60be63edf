"""Models as services."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# Where only processes of the same machine can ask.
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
# The stages that answer over HTTP until they are told to end.
SERVICE_STAGES = ("serve_reward", "serve")
# The stages that start vLLM's server.
SERVER_STAGES = ("serve", "chat")


@dataclass
class ServeConfig:
    """`stage=serve` and `stage=serve_reward`: where a model answers, and to whom.

    The first four keys are of both, the others of `stage=serve` alone.
    """

    host: str = setting("127.0.0.1", "Address to listen at.")
    port: int = setting(8000, "Port; 0 takes a free one.", minimum=0, maximum=65535)
    token_variable: str | None = setting(
        None,
        "Name of the environment variable with the API key (bearer token) that requests must "
        "bring; null asks for none, which only an address of this machine allows.",
    )
    max_request_bytes: int = setting(
        16 * 1024 * 1024, "Longest request; a longer one is refused.", unit="bytes", minimum=1024
    )
    model_name: str | None = setting(
        None,
        "What requests call the model; null takes the name of its folder, and where that is "
        "`model`, of the run that wrote it.",
    )
    backend: str = setting(
        "local",
        "Where replicas run: local, on this machine; ray_serve, on the nodes of a Ray cluster.",
        choices=("local", "ray_serve"),
    )
    replicas: int = setting(1, "vLLM servers that share the requests.", minimum=1)
    max_replicas: int | None = setting(
        None,
        "Replicas at the busiest, with serve.backend=ray_serve; null keeps serve.replicas.",
        minimum=1,
    )
    requests_per_replica: int = setting(
        32, "Requests under way per replica that autoscaling aims at.", minimum=1
    )
    max_model_tokens: int | None = setting(
        None,
        "Longest prompt and answer together; null takes what the model can.",
        unit="tokens",
        minimum=1,
    )
    max_requests_under_way: int = setting(
        1024, "Requests at a time; a further one is told to come again.", minimum=1
    )
    health_every_s: float = setting(
        2.0, "Time between two looks at a replica.", unit="seconds", above=0
    )
    health_timeout_s: float = setting(
        30.0, "A replica that says nothing for so long is started again.", unit="seconds", above=0
    )
    stall_s: float = setting(
        120.0,
        "A replica whose engine makes no step for so long, with requests under way, is started "
        "again.",
        unit="seconds",
        above=0,
    )
    max_restarts: int = setting(
        5, "Restarts of a replica within serve.restart_window_s before it is given up.", minimum=0
    )
    restart_window_s: float = setting(600.0, "See serve.max_restarts.", unit="seconds", above=0)

    @property
    def is_local(self) -> bool:
        """Only processes of this machine can ask."""
        return self.host in LOCAL_HOSTS
