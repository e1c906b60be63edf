"""stage=plan, and dry_run of any stage: what a run would be, without starting anything."""

from __future__ import annotations

from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.stages.rl.stage import STAGE as RL
from rlhf_ray.stages.stage import FolderUse, Stage
from rlhf_ray.stages.table import load_stage


def run(config: Config) -> int:
    """Print configuration and plan of the chosen stage to stdout; returns exit status 0.

    Raises:
        RequestError: something is missing that the run would refuse at once.
    """
    name = config.stage.name
    described = RL if name == "plan" else load_stage(name)
    print(f"# Configuration\n{to_yaml(config)}")
    print(described.describe(config), flush=True)
    # After the plan, which may be wanted where the model and the data are not.
    described.check(config)
    return 0


# On its own it describes reinforcement learning.
STAGE = Stage(name="plan", describe=RL.describe, run=run, folder=FolderUse.NONE)
