"""Rules of recovery: which engines a run can replace, and how many must be left."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config


def _is_possible(config: Config) -> Iterator[str]:
    key = f"recovery.max_restarts={config.recovery.max_restarts}"
    if config.recovery.max_restarts == 0:
        return
    if config.placement.strategy == "colocated":
        yield (
            f"{key}: with placement=colocated an engine shares its GPUs with learner ranks, and "
            f"cannot be replaced alone; set recovery.max_restarts=0 or placement=disaggregated"
        )
    if config.reward.judge.is_policy:
        yield (
            f"{key}: reward.judge.model=policy asks the engines of the run, and would go on asking "
            f"a lost one; set recovery.max_restarts=0 or give the judge a model of its own"
        )
    if config.generation.spans_nodes:
        yield (
            f"{key}: generation.pipeline_parallel_size={config.generation.pipeline_parallel_size} "
            f"has vLLM start workers on several nodes, which a run cannot end one by one; set "
            f"recovery.max_restarts=0"
        )


def _is_enough(config: Config) -> Iterator[str]:
    recovery, num_engines = config.recovery, config.generation.num_engines
    if recovery.max_restarts == 0 and recovery.min_engines > 0:
        yield (
            f"recovery.min_engines={recovery.min_engines}: changes nothing while "
            f"recovery.max_restarts=0 ends the run at the first loss; raise max_restarts or leave "
            f"min_engines at 0"
        )
    elif recovery.max_restarts > 0 and recovery.min_engines >= num_engines:
        yield (
            f"recovery.min_engines={recovery.min_engines}: is no less than "
            f"generation.num_engines={num_engines}, so that the first loss would end the run; "
            f"lower min_engines, or set recovery.max_restarts=0"
        )


def _takes_snapshots(config: Config) -> Iterator[str]:
    recovery = config.recovery
    if recovery.max_restarts == 0 and recovery.snapshot_every > 1:
        yield (
            f"recovery.snapshot_every={recovery.snapshot_every}: changes nothing while "
            f"recovery.max_restarts=0 ends the run at the first loss; raise max_restarts or leave "
            f"snapshot_every at 1"
        )


RECOVERY_RULES: tuple[Rule, ...] = (
    Rule(
        about="With `recovery.max_restarts`, engines have GPUs and nodes of their own, and no "
        "judge asks them.",
        keys=(
            "recovery.max_restarts",
            "placement.strategy",
            "reward.judge",
            "generation.pipeline_parallel_size",
        ),
        problems=_is_possible,
    ),
    Rule(
        about="`recovery.min_engines` is less than `generation.num_engines`, and set only with "
        "`recovery.max_restarts`.",
        keys=("recovery.max_restarts", "recovery.min_engines", "generation.num_engines"),
        problems=_is_enough,
    ),
    Rule(
        about="`recovery.snapshot_every` above 1 is set only with `recovery.max_restarts`.",
        keys=("recovery.max_restarts", "recovery.snapshot_every"),
        problems=_takes_snapshots,
    ),
)
