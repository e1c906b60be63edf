"""Keys of parts that a run of reinforcement learning does not start: named in a note.

They are read by other settings of the same stage, so that they are no mistake of the command line
alone: a file of settings may carry those of a critic for PPO and GRPO alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_ray.config.keys.unread import single_values
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import RL_STAGES

_NO_CRITIC = (
    lambda config: config.needs_critic,
    "algorithm.advantage={config.algorithm.advantage} has no critic",
)
# A group or key that a part reads; whether the run has that part; why it has none.
_PARTS: Mapping[str, tuple[Callable[[Config], bool], str]] = {
    "critic": _NO_CRITIC,
    "algorithm.gae_lambda": _NO_CRITIC,
    "algorithm.value_clip": _NO_CRITIC,
    "algorithm.value_huber_delta": _NO_CRITIC,
    "reference": (
        lambda config: config.needs_reference,
        "algorithm.kl_coefficient={config.algorithm.kl_coefficient:g} needs no reference",
    ),
    "texts": (
        lambda config: config.algorithm.ptx_coefficient > 0,
        "algorithm.ptx_coefficient=0 learns from no texts",
    ),
    "reward.model": (
        lambda config: config.needs_reward_model,
        "reward.model.path is null",
    ),
    "reward.judge": (
        lambda config: config.reward.judge.model is not None,
        "reward.judge.model is null",
    ),
    "reward.http": (lambda config: config.reward.url is not None, "reward.url is null"),
}


def is_of_unstarted_part(config: Config, key: str) -> bool:
    """Whether a key is of a part, such as the critic, that a run of this configuration lacks."""
    if config.stage.name not in RL_STAGES:
        return False
    return any(
        (key == name or key.startswith(f"{name}.")) and not is_started(config)
        for name, (is_started, _) in _PARTS.items()
    )


def unstarted_notes(config: Config, values: Sequence[tuple[str, Any]]) -> list[str]:
    """A note for each part that the run does not start and whose keys are set.

    Args:
        values: keys and groups of keys of the command line.
    """
    if config.stage.name not in RL_STAGES:
        return []
    keys = dict.fromkeys(key for key, _ in single_values(values))
    notes = []
    for name, (is_started, reason) in _PARTS.items():
        unread = [key for key in keys if key == name or key.startswith(f"{name}.")]
        if unread and not is_started(config):
            are = "is" if len(unread) == 1 else "are"
            why = reason.format(config=config)
            notes.append(f"note: {', '.join(unread)} {are} not read by this run: {why}")
    return notes
