"""stage=plan: what a run would be, without starting anything."""

from __future__ import annotations

from rlhf_ray.cluster.resources import describe, plan_resources
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config


def run(config: Config) -> int:
    """Print configuration, batch table and placement to stdout; returns exit status 0."""
    print(f"# Configuration\n{to_yaml(config)}")
    print(f"# Batch\n{render_rows(batch_table(config))}\n")
    print(f"# Placement: {config.placement.strategy}\n{describe(plan_resources(config))}")
    return 0
