"""Keys that decide what a run optimises, and how a resumed run accepts a change of them.

A key that decides how well or how fast it is optimised (learning rate, batch layout, placement,
deadlines) is not one of them: its change is listed and no more.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import fields

from rlhf_ray.config.groups.generation import EngineConfig
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.config.schema import Key, all_keys, nearest_keys

# Groups and keys: rewards, losses, the distribution that answers are sampled from, the prompts.
_DECIDES = (
    "reward",
    "algorithm",
    # Its value is part of the identity of a run; what can be accepted is a change of its files.
    "model.path",
    "reference.path",
    "reference.source",
    "generation.temperature",
    "generation.top_p",
    "generation.top_k",
    "generation.min_p",
    "generation.stop",
    "generation.ignore_eos",
    "generation.min_response_tokens",
    "generation.max_response_tokens",
    "rollout_selection.overlong_buffer_tokens",
    "rollout_selection.overlong_penalty",
    "rollout_selection.overlong_filter",
    "rollout_selection.task_weights",
    "data.system_prompt",
    "data.apply_chat_template",
    "model.chat_template",
    "preference",
    "reward_model",
)
# Below them: how a part of the reward is run, which changes no score.
_RUNS = {
    *(field.name for field in (*fields(RoleConfig), *fields(EngineConfig))),
    "num_workers",
    "max_failure_rate",
    "max_retries",
    "max_in_flight",
    "token_variable",
    "try_first_row",
    "max_memory_gib",
    "max_processes",
    "max_open_files",
    "max_file_gib",
    "sandbox",
    "sandbox_network",
    "sandbox_read",
}


def is_objective(key: str) -> bool:
    """Whether the key decides what is optimised."""
    return key in objective_keys()


@functools.cache
def objective_keys() -> tuple[str, ...]:
    """All keys that decide what is optimised."""
    return tuple(name for name, key in all_keys().items() if _decides(key))


def is_accepted(key: str, accepted: Collection[str]) -> bool:
    """Whether the key, or a group that it is in, is among the accepted ones."""
    return any(_is_in(key, name) for name in accepted)


def acceptance_problem(entry: str) -> str | None:
    """The reason why an entry of `checkpoint.accept_changes` accepts nothing, or None."""
    if any(_is_in(key, entry) for key in objective_keys()):
        return None
    if entry in all_keys():
        return (
            f"{entry} needs no acceptance: either its change is only listed, or the checkpoint of "
            f"a run with another value is never taken; remove the entry"
        )
    near = nearest_keys(entry)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no key or group {entry!r} that decides what is optimised{hint}"


def _decides(key: Key) -> bool:
    is_run = not _RUNS.isdisjoint(key.name.split(".")[1:]) or key.setting.unit == "seconds"
    return not is_run and any(_is_in(key.name, group) for group in _DECIDES)


def _is_in(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")
