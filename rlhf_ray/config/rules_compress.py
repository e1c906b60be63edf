"""Rules of `stage=compress`."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.compress import METHODS
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config

_COMPRESS = ("compress",)


def _methods(config: Config) -> Iterator[str]:
    methods = config.compress.methods
    if not methods:
        yield f"compress.methods=[]: name at least one of {', '.join(METHODS)}"
    for method in dict.fromkeys(methods):
        if method not in METHODS:
            yield f"compress.methods: {method!r} is none of {', '.join(METHODS)}"
        elif methods.count(method) > 1:
            yield f"compress.methods: {method} is there more than once"


def _prompts(config: Config) -> Iterator[str]:
    if not config.data.path:
        yield "data.path is empty: the methods look at prompts that the model was trained on"


COMPRESS_RULES: tuple[Rule, ...] = (
    Rule(
        about=f"`compress.methods` has at least one of {', '.join(METHODS)}, each once.",
        keys=("compress.methods",),
        problems=_methods,
        stages=_COMPRESS,
    ),
    Rule(
        about="`stage=compress`: `data.path` is not empty.",
        keys=("data.path",),
        problems=_prompts,
        stages=_COMPRESS,
    ),
)
