"""What a run asks of the cluster, as plain data: which actor, how many, in which bundle.

A bundle is a piece of one node that Ray reserves as a whole. Nothing here imports Ray, so that a
plan costs nothing and is tested without a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.reward import JudgeConfig
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.config.run import Config

# The builder turns groups into experience: tensors of a few megabytes, on no GPU.
BUILDER_CPUS = 0.1
# What asks a judge's engines waits for them nearly all the time.
JUDGE_CPUS = 0.05

Bundle = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolePlan:
    """The actors of one role.

    Attributes:
        role: generator, learner, critic, reference, reward_model, http_reward, judge
            (its engines), judge_scorer, reward or builder.
        num_cpus, num_gpus: what each actor asks of its bundle. An engine that shares the GPUs of
            learner ranks asks for none and takes those of its bundle.
        bundle_indices: the bundle of each actor, in the order of their ranks.
    """

    role: str
    num_actors: int
    num_cpus: float
    num_gpus: float
    bundle_indices: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.bundle_indices) == self.num_actors, f"{self.role}: one bundle per actor"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcePlan:
    """All actors and bundles of a run.

    Attributes:
        bundles: {"CPU": ..., "GPU": ...} each.
        strategy: Ray's: PACK on as few nodes as possible, or SPREAD.
    """

    roles: tuple[RolePlan, ...]
    bundles: tuple[Bundle, ...]
    strategy: str

    @property
    def totals(self) -> Bundle:
        """Sum over all bundles."""
        return {
            name: round(sum(bundle[name] for bundle in self.bundles), 4) for name in ("CPU", "GPU")
        }

    def roles_in(self, bundle_index: int) -> list[str]:
        """Roles that have an actor in a bundle."""
        return [role.role for role in self.roles if bundle_index in role.bundle_indices]


class _Planner:
    """Collects roles and bundles in the order in which they are added."""

    def __init__(self) -> None:
        self.roles: list[RolePlan] = []
        self.bundles: list[Bundle] = []

    def add_apart(self, role: str, count: int, *, cpus: float, gpus: float) -> None:
        """Actors with a bundle of their own each."""
        first = len(self.bundles)
        self.bundles += [{"CPU": cpus, "GPU": gpus} for _ in range(count)]
        self._add_role(role, cpus, gpus, range(first, first + count))

    def add_together(self, config: Config) -> None:
        """Engines and learner ranks: an engine and its share of the ranks in one bundle.

        On GPUs the rules of the configuration give each engine as many ranks as it has GPUs.
        """
        generation, training = config.generation, config.training
        engines, ranks = generation.num_engines, training.num_ranks
        bundle_of_rank = [rank * engines // ranks for rank in range(ranks)]
        ranks_in = Counter(bundle_of_rank)
        self.bundles += [
            {
                "CPU": generation.num_cpus + ranks_in[engine] * training.num_cpus,
                "GPU": ranks_in[engine] * training.num_gpus,
            }
            for engine in range(engines)
        ]
        self._add_role("generator", generation.num_cpus, 0.0, range(engines))
        self._add_role("learner", training.num_cpus, training.num_gpus, bundle_of_rank)

    def _add_role(self, role: str, cpus: float, gpus: float, bundles: Sequence[int]) -> None:
        self.roles.append(
            RolePlan(
                role=role,
                num_actors=len(bundles),
                num_cpus=cpus,
                num_gpus=gpus,
                bundle_indices=tuple(bundles),
            )
        )


def plan_resources(config: Config) -> ResourcePlan:
    """The actors of a run and the bundles they live in; a function of the configuration alone."""
    planner = _Planner()
    if config.is_fit:
        _add_ranks(planner, "learner", config.training)
        return _planned(planner, config)
    if config.is_evaluation:
        _add_engines(planner, config.generation)
    elif config.placement.strategy == "colocated":
        planner.add_together(config)
    else:
        _add_engines(planner, config.generation)
        _add_ranks(planner, "learner", config.training)
    if config.needs_critic:
        _add_ranks(planner, "critic", config.critic)
    if config.starts_reference:
        _add_ranks(planner, "reference", config.reference)
    reward = config.reward
    if config.needs_reward_model:
        _add_ranks(planner, "reward_model", reward.model)
    if reward.url is not None:
        planner.add_apart("http_reward", 1, cpus=reward.http.num_cpus, gpus=0.0)
    _add_judge(planner, reward.judge)
    planner.add_apart("reward", reward.num_workers, cpus=reward.num_cpus, gpus=0.0)
    planner.add_apart("builder", 1, cpus=BUILDER_CPUS, gpus=0.0)
    return _planned(planner, config)


def _add_engines(planner: _Planner, generation: GenerationConfig) -> None:
    planner.add_apart(
        "generator",
        generation.num_engines,
        cpus=generation.num_cpus,
        gpus=generation.tensor_parallel_size * generation.num_gpus,
    )


def _add_judge(planner: _Planner, judge: JudgeConfig) -> None:
    if judge.has_engines:
        planner.add_apart(
            "judge",
            judge.num_engines,
            cpus=judge.num_cpus,
            gpus=judge.tensor_parallel_size * judge.num_gpus,
        )
    if judge.model is not None:
        planner.add_apart("judge_scorer", 1, cpus=JUDGE_CPUS, gpus=0.0)


def _planned(planner: _Planner, config: Config) -> ResourcePlan:
    return ResourcePlan(
        roles=tuple(planner.roles),
        bundles=tuple(planner.bundles),
        strategy="SPREAD" if config.placement.spread else "PACK",
    )


def _add_ranks(planner: _Planner, role: str, settings: RoleConfig) -> None:
    planner.add_apart(role, settings.num_ranks, cpus=settings.num_cpus, gpus=settings.num_gpus)


def describe(plan: ResourcePlan) -> str:
    """The plan as an aligned table, without a final newline."""
    rows = [("role", "actors", "CPUs each", "GPUs each", "bundles")]
    rows += [
        (
            role.role,
            str(role.num_actors),
            f"{role.num_cpus:g}",
            f"{role.num_gpus:g}",
            _ranges(role.bundle_indices),
        )
        for role in plan.roles
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:4], widths[1:4], strict=True))
        + f"  {row[4]}"
        for row in rows
    ]
    shared = [index for index in range(len(plan.bundles)) if len(plan.roles_in(index)) > 1]
    if shared:
        names = " and ".join(plan.roles_in(shared[0]))
        lines.append(f"{names} share bundles {_ranges(shared)}")
    totals = plan.totals
    lines.append(
        f"total: {totals['CPU']:g} CPUs, {totals['GPU']:g} GPUs in {len(plan.bundles)} bundles "
        f"({plan.strategy})"
    )
    return "\n".join(lines)


def missing(plan: ResourcePlan, available: Sequence[Mapping[str, float]]) -> list[str]:
    """What the cluster lacks, one sentence per kind of bundle without a place; empty if it fits.

    Bundles are placed largest first on the first node with room, which is how Ray packs them.

    Args:
        available: free {"CPU": ..., "GPU": ...} of every node; other resources are ignored.
    """
    free = [{name: _units(node.get(name, 0.0)) for name in ("CPU", "GPU")} for node in available]
    lost: list[int] = []
    order = sorted(range(len(plan.bundles)), key=lambda index: _size(plan.bundles[index]))
    for index in reversed(order):
        wanted = {name: _units(amount) for name, amount in plan.bundles[index].items()}
        node = next((n for n in free if all(n[name] >= wanted[name] for name in wanted)), None)
        if node is None:
            lost.append(index)
            continue
        for name, amount in wanted.items():
            node[name] -= amount
    return _sentences(plan, available, lost)


def _sentences(
    plan: ResourcePlan, available: Sequence[Mapping[str, float]], lost: Sequence[int]
) -> list[str]:
    kinds = Counter((" and ".join(plan.roles_in(i)), *_size(plan.bundles[i])) for i in lost)
    wanted = Counter(
        (" and ".join(plan.roles_in(i)), *_size(bundle)) for i, bundle in enumerate(plan.bundles)
    )
    return [
        f"{roles}: {count} of {wanted[roles, gpus, cpus]} bundles with {gpus:g} GPUs and {cpus:g} "
        f"CPUs on one node find no place; {_cluster_words(available)}, and the whole run needs "
        f"{plan.totals['GPU']:g} GPUs and {plan.totals['CPU']:g} CPUs"
        for (roles, gpus, cpus), count in sorted(kinds.items())
    ]


def _cluster_words(available: Sequence[Mapping[str, float]]) -> str:
    if not available:
        return "the cluster has no node"
    nodes = "1 node" if len(available) == 1 else f"{len(available)} nodes"
    total = {name: sum(node.get(name, 0.0) for node in available) for name in ("GPU", "CPU")}
    largest = {name: max(node.get(name, 0.0) for node in available) for name in ("GPU", "CPU")}
    return (
        f"the cluster has {total['GPU']:g} GPUs and {total['CPU']:g} CPUs free on {nodes}, at most "
        f"{largest['GPU']:g} GPUs and {largest['CPU']:g} CPUs on one"
    )


def _size(bundle: Bundle) -> tuple[float, float]:
    return bundle["GPU"], bundle["CPU"]


def _units(amount: float) -> int:
    """Ten-thousandths, as Ray counts: 0.1 + 0.2 is 0.3."""
    return round(amount * 10_000)


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"; repeated numbers count once."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
