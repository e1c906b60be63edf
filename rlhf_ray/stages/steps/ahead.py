"""Checks of the models of every stage before the first one starts, and without its data.

The same mistakes are found when a stage starts, which may be hours later.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.config.errors import GatheredProblems
from rlhf_ray.config.run import Config
from rlhf_ray.planning.gpu_memory import check_gpu_memory
from rlhf_ray.planning.shape import local_model
from rlhf_ray.planning.storage.disk import check_disk
from rlhf_ray.stages.steps.origins import KnownPart, known_parts

# Its shapes are its engines' alone: the other models are looked at without it.
_JUDGE = "reward.judge.model"


def check_sizes(parts: Sequence[tuple[str, Config]]) -> None:
    """Refuse stages whose models do not fit on their GPUs, by arithmetic. Imports nothing heavy.

    Args:
        parts: names and configurations of the stages, in order.

    Raises:
        RequestError: lists the stages.
    """
    problems = GatheredProblems()
    for part in known_parts(parts):
        if part.config.is_fit or part.config.stage.name == "rl":
            with problems.gathered(_prefix(part)):
                check_gpu_memory(part.config, local_model(part.config.model.path))
    problems.refuse()


def check_ahead(parts: Sequence[tuple[str, Config]]) -> None:
    """Refuse stages whose models cannot be trained as their settings say, or fill the disk.

    A model that an earlier stage makes has the shapes of the one that it starts from. Models of
    the hub, and built-in ones that no run has made, are looked at when their stage starts.

    Args:
        parts: names and configurations of the stages that are not finished, in order.

    Raises:
        RequestError: lists what is wrong with every stage.
    """
    problems = GatheredProblems()
    for part in known_parts(parts):
        config = part.config
        if not (config.is_fit or config.stage.name == "rl"):
            continue
        with problems.gathered(_prefix(part)):
            check_disk(config)
        if not part.unknown - {_JUDGE}:
            with problems.gathered(_prefix(part)):
                _check_models(part)
    problems.refuse()


def _check_models(part: KnownPart) -> None:
    # Seconds of import, which the first stage needs anyway.
    from rlhf_ray.generation.requirements import check_head_size
    from rlhf_ray.stages.model_files import check_model_files
    from rlhf_ray.stages.positions import check_sequences
    from rlhf_ray.stages.trained_part import check_trained

    config = part.config
    if not config.is_fit:
        check_head_size(config.model, config.generation)
        check_sequences(config)
    check_model_files(config, shapes_only=part.replaced | part.unknown)
    check_trained(config)


def _prefix(part: KnownPart) -> str:
    return f"pipeline.stages.{part.name}: "
