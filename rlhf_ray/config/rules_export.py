"""Rules of `stage=export`."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config


def _licence(config: Config) -> Iterator[str]:
    if not config.export.licence:
        yield (
            "export.licence=null: say who may use the weights, by the hub's identifier, such as "
            "export.licence=apache-2.0; that of the base model mostly binds its descendants"
        )


EXPORT_RULES: tuple[Rule, ...] = (
    Rule(
        about="`stage=export`: `export.licence` is set.",
        keys=("export.licence",),
        problems=_licence,
        stages=("export",),
    ),
)
