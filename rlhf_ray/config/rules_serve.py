"""Rules of a language model that is served."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rule import Rule
from rlhf_ray.config.rules_generation import OWNED_ARGUMENTS
from rlhf_ray.config.run import Config

_SERVE = ("serve",)
# What the engines of a run need and a server leaves to its owner.
_FREE = ("enable_lora", "max_loras", "max_lora_rank", "lora_target_modules", "max_logprobs")


def _model(config: Config) -> Iterator[str]:
    if not config.model.path:
        yield (
            "model.path is empty: name the model to serve, such as the folder `model` that a "
            "training stage has written, or a hub name"
        )


def _replicas(config: Config) -> Iterator[str]:
    serve = config.serve
    if serve.max_replicas is None:
        return
    if serve.backend == "local":
        yield (
            f"serve.max_replicas={serve.max_replicas}: only Ray Serve starts replicas as they are "
            f"needed; set serve.backend=ray_serve, or max_replicas=null and serve.replicas to the "
            f"number that you want"
        )
    elif serve.max_replicas < serve.replicas:
        yield (
            f"serve.max_replicas={serve.max_replicas}: is less than serve.replicas="
            f"{serve.replicas}, with which it begins; raise the one or lower the other"
        )


def _arguments(config: Config) -> Iterator[str]:
    owners = OWNED_ARGUMENTS | {"max_model_len": "serve.max_model_tokens"}
    for name in config.generation.extra_engine_args:
        owner = owners.get(name)
        if owner is not None and name not in _FREE:
            yield f"generation.extra_engine_args.{name}: is decided by {owner}; set that"


SERVE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`model.path` is set.",
        keys=("model.path",),
        problems=_model,
        stages=_SERVE,
    ),
    Rule(
        about="`serve.max_replicas` needs `serve.backend=ray_serve`, and is at least "
        "`serve.replicas`.",
        keys=("serve.backend", "serve.replicas", "serve.max_replicas"),
        problems=_replicas,
        stages=_SERVE,
    ),
    Rule(
        about="`generation.extra_engine_args` names no argument that another key decides.",
        keys=("generation.extra_engine_args",),
        problems=_arguments,
        stages=_SERVE,
    ),
)
