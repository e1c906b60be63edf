"""The resource plan: which actors, how many, in which bundle.

A bundle is a piece of one node that Ray reserves as a whole. Nothing here imports Ray, so that a
plan costs nothing and is tested without a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Bundle = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The resources that a role asks the cluster for.

    Attributes:
        role: name of the role; its actors are called role_0, role_1, ...
        num_cpus, num_gpus: of each actor.
        actors_per_bundle: neighbouring actors that must be on one node.
        shares_bundles_of: a role whose bundles these actors share, as many in each (the hybrid
            engine); None: the actors have bundles of their own.
        workers_per_actor: processes of each actor that have a bundle of one GPU each, the first
            that of the actor, the others anywhere in the cluster.
    """

    role: str
    num_actors: int
    num_cpus: float
    num_gpus: float
    actors_per_bundle: int = 1
    shares_bundles_of: str | None = None
    workers_per_actor: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RolePlan:
    """The actors of one role.

    Attributes:
        role: name of the role; see `cluster.roles`.
        num_cpus, num_gpus: what each actor asks of its bundle. An engine that shares the GPUs of
            learner ranks asks for none and takes those of its bundle.
        bundle_indices: the bundle of each actor, in the order of their ranks.
        worker_bundles: of each actor, the bundles of its workers that have their own; the first
            is the actor's.
    """

    role: str
    num_actors: int
    num_cpus: float
    num_gpus: float
    bundle_indices: tuple[int, ...]
    worker_bundles: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        assert len(self.bundle_indices) == self.num_actors, f"{self.role}: one bundle per actor"

    @property
    def all_bundles(self) -> tuple[int, ...]:
        """Bundles of actors and of their workers."""
        return self.bundle_indices + tuple(i for own in self.worker_bundles for i in own[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcePlan:
    """All actors and bundles of a run.

    Attributes:
        bundles: {"CPU": ..., "GPU": ...} each.
        strategy: Ray's: PACK on as few nodes as possible, or SPREAD.
        environment: variables of every actor. Not printed: values may be secrets.
    """

    roles: tuple[RolePlan, ...]
    bundles: tuple[Bundle, ...]
    strategy: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def totals(self) -> Bundle:
        """Sum over all bundles."""
        return {
            name: round(sum(bundle[name] for bundle in self.bundles), 4) for name in ("CPU", "GPU")
        }

    def role(self, name: str) -> RolePlan:
        """The plan of one role, which is part of it."""
        return next(role for role in self.roles if role.role == name)

    def roles_in(self, bundle_index: int) -> list[str]:
        """Roles that have an actor in a bundle."""
        return [role.role for role in self.roles if bundle_index in role.all_bundles]


def plan_resources(roles: Sequence[Resources], *, spread: bool) -> ResourcePlan:
    """The bundles that roles live in; a function of what they ask for alone.

    Every actor has its own bundle, except where actors of a role must be on one node, or a role
    shares the bundles of an earlier one.

    Args:
        spread: put bundles on different nodes where possible.
    """
    bundles: list[Bundle] = []
    planned: dict[str, RolePlan] = {}
    for role in roles:
        if role.shares_bundles_of is None:
            indices = tuple(
                len(bundles) + actor // role.actors_per_bundle for actor in range(role.num_actors)
            )
            bundles += [
                {"CPU": number * role.num_cpus, "GPU": number * role.num_gpus}
                for number in Counter(indices).values()
            ]
        else:
            indices = _join(role, planned[role.shares_bundles_of], bundles)
        workers = tuple(
            _add_workers(role, index, bundles) for index in indices if role.workers_per_actor
        )
        planned[role.role] = RolePlan(
            role=role.role,
            num_actors=role.num_actors,
            num_cpus=role.num_cpus,
            num_gpus=role.num_gpus,
            bundle_indices=indices,
            worker_bundles=workers,
        )
    return ResourcePlan(
        roles=tuple(planned.values()),
        bundles=tuple(bundles),
        strategy="SPREAD" if spread else "PACK",
    )


def _add_workers(role: Resources, index: int, bundles: list[Bundle]) -> tuple[int, ...]:
    """Give each worker of the actor in bundle `index` a bundle with a GPU; returns all of them.

    The first worker is next to the actor: vLLM's Ray executor wants a GPU on the actor's node. Its
    workers ask for no CPU.
    """
    bundles[index]["GPU"] += 1.0
    first = len(bundles)
    bundles += [{"CPU": 0.0, "GPU": 1.0} for _ in range(role.workers_per_actor - 1)]
    return (index, *range(first, len(bundles)))


def _join(role: Resources, host: RolePlan, bundles: list[Bundle]) -> tuple[int, ...]:
    """Enlarge the bundles of `host` by the actors of `role`; returns the bundle of each actor.

    On GPUs the rules of the configuration give each engine as many ranks as it has GPUs.
    """
    indices = tuple(
        host.bundle_indices[rank * host.num_actors // role.num_actors]
        for rank in range(role.num_actors)
    )
    for index, number in Counter(indices).items():
        bundles[index] = {
            "CPU": bundles[index]["CPU"] + number * role.num_cpus,
            "GPU": bundles[index]["GPU"] + number * role.num_gpus,
        }
    return indices


def describe(plan: ResourcePlan) -> str:
    """The plan as an aligned table, without a final newline."""
    rows = [("role", "actors", "CPUs each", "GPUs each", "bundles")]
    rows += [
        (
            role.role,
            str(role.num_actors),
            f"{role.num_cpus:g}",
            f"{role.num_gpus:g}",
            _ranges(role.all_bundles),
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
    """The bundles that the cluster has no room for, a sentence per kind; empty if all fit.

    Where a bundle is larger than every node, only such bundles are named.

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


def describe_nodes(available: Sequence[Mapping[str, float]]) -> str:
    """Resources of all nodes together, and of the largest, in words."""
    if not available:
        return "no node"
    total = {name: sum(node.get(name, 0.0) for node in available) for name in ("GPU", "CPU")}
    words = f"{total['GPU']:g} GPUs and {total['CPU']:g} CPUs"
    if len(available) == 1:
        return f"{words} on 1 node"
    largest = {name: max(node.get(name, 0.0) for node in available) for name in ("GPU", "CPU")}
    return (
        f"{words} on {len(available)} nodes, at most {largest['GPU']:g} GPUs and "
        f"{largest['CPU']:g} CPUs on one"
    )


def _sentences(
    plan: ResourcePlan, available: Sequence[Mapping[str, float]], lost: Sequence[int]
) -> list[str]:
    # A bundle for which no node is large enough is the reason. The others found no room only
    # because of their order.
    impossible = [i for i in lost if not any(_fits(plan.bundles[i], node) for node in available)]
    kinds = Counter(_kind(plan, index) for index in impossible or lost)
    wanted = Counter(_kind(plan, index) for index in range(len(plan.bundles)))
    ending = "fit on no node" if impossible else "find no room next to the larger ones"
    return [
        f"{kind[0]}: {count} of {wanted[kind]} bundles with {kind[1]:g} GPUs and {kind[2]:g} CPUs "
        f"{ending}"
        for kind, count in sorted(kinds.items())
    ]


def _kind(plan: ResourcePlan, index: int) -> tuple[str, float, float]:
    return (" and ".join(plan.roles_in(index)), *_size(plan.bundles[index]))


def _fits(bundle: Bundle, node: Mapping[str, float]) -> bool:
    return all(_units(amount) <= _units(node.get(name, 0.0)) for name, amount in bundle.items())


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
