"""A chat in a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class ChatConfig:
    """`stage=chat`: with whom, and how they answer."""

    url: str | None = setting(
        None,
        "OpenAI-compatible endpoint, such as the one that stage=serve names; null starts a server "
        "of model.path on this machine.",
    )
    model: str | None = setting(
        None, "Name of the model at chat.url; null takes the first that it lists."
    )
    token_variable: str | None = setting(
        None, "Name of the environment variable with the API key of chat.url and chat.compare_url."
    )
    compare_url: str | None = setting(
        None, "Endpoint of a second model, for /compare; it may be the same."
    )
    compare_model: str | None = setting(
        None, "Name of the model at chat.compare_url; null takes the first that it lists."
    )
    compare_path: str | None = setting(
        None, "Folder or hub name of a second model, served on this machine, for /compare."
    )
    system: str | None = setting(None, "Is said before everything else, as the system.")
    max_tokens: int = setting(256, "Longest answer.", unit="tokens", minimum=1)
    temperature: float = setting(0.7, "0 takes the likeliest token.", minimum=0, maximum=2)
    top_p: float = setting(1.0, "Nucleus; 1 is off.", above=0, maximum=1)
    timeout_s: float = setting(120.0, "Longest wait for the next word.", unit="seconds", above=0)
