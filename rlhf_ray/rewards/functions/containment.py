"""The borders of the functions' process, from the settings: limits, environment, sandbox."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.groups.reward import RewardConfig, RewardFunctionConfig
from rlhf_ray.config.reward_entries import parse_target
from rlhf_ray.rewards.functions.environment import function_environment, search_path
from rlhf_ray.rewards.functions.limits import FunctionLimits
from rlhf_ray.rewards.functions.sandbox import Sandbox, sandbox_command


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """All that the keeper needs to start the process of the functions.

    Attributes:
        command: the program, to which the channel's descriptor is added; None for a fork of the
            keeper.
    """

    environment: dict[str, str]
    limits: FunctionLimits
    command: list[str] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Containment:
    """Settings of the borders.

    Attributes:
        variables: names of the environment variables that the functions see in addition.
        sandbox: None for none.
    """

    limits: FunctionLimits
    variables: tuple[str, ...]
    sandbox: Sandbox | None

    @property
    def is_sandboxed(self) -> bool:
        return self.sandbox is not None

    def launch(self, functions: Sequence[RewardFunctionConfig]) -> Launch:
        """Decide how a process is started.

        Raises:
            RequestError: a variable is not set, or there is no sandbox on this machine.
        """
        environment = function_environment(os.environ, self.variables)
        if self.sandbox is None:
            return Launch(environment=environment, limits=self.limits, command=None)
        files = [target.file for target in (parse_target(entry.path) for entry in functions)]
        visible = [
            *map(Path, search_path()),
            *(Path(folder) for folder in (sys.prefix, sys.base_prefix)),
            # The folder, because a file may import its neighbours.
            *(file.resolve().parent for file in files if file is not None),
        ]
        limits = json.dumps(dataclasses.asdict(self.limits))
        module = "rlhf_ray.rewards.functions.runner"
        command = [
            *sandbox_command(self.sandbox, visible, home=environment.get("HOME")),
            *(sys.executable, "-u", "-P", "-m", module, limits),
        ]
        return Launch(environment=environment, limits=self.limits, command=command)


def containment_of(reward: RewardConfig) -> Containment:
    """The borders that `reward` asks for."""
    sandbox = None
    if reward.sandbox != "none":
        sandbox = Sandbox(
            network=reward.sandbox_network,
            read=tuple(Path(folder) for folder in reward.sandbox_read),
            scratch_gib=reward.max_memory_gib,
        )
    return Containment(
        limits=FunctionLimits(
            memory_gib=reward.max_memory_gib,
            processes=reward.max_processes,
            open_files=reward.max_open_files,
            file_gib=reward.max_file_gib,
        ),
        variables=tuple(reward.environment),
        sandbox=sandbox,
    )
