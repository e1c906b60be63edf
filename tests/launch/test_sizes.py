"""What a GPU recipe needs is what every launcher can give, and what the documentation asks for."""

from __future__ import annotations

import functools
import re

import pytest
import yaml

from rlhf_ray.cluster.resource_plan import ResourcePlan, missing
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.load import load_config
from tests.launch.load_script import LAUNCH

DOCUMENTED = (LAUNCH.parent / "docs" / "launch.md", LAUNCH / "slurm.sbatch")
SBATCH = re.compile(r"sbatch (?:--nodes=(\d+) )?launch/slurm\.sbatch recipe=(\w+)")
TABLE_ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| (\d+) \|$", re.MULTILINE)
MOST_NODES = 64


def plan_of(recipe: str) -> ResourcePlan:
    return resource_plan(load_config([f"recipe={recipe}"]))


@functools.cache
def gpu_recipes() -> tuple[str, ...]:
    """Recipes that ask for GPUs, by their names."""
    return tuple(name for name in group_choices()["recipe"] if name.startswith("gpu_"))


def nodes_needed(recipe: str, node: dict[str, float]) -> int:
    """The smallest number of nodes of this size that the whole run fits on."""
    plan = plan_of(recipe)
    return next(n for n in range(1, MOST_NODES + 1) if not missing(plan, [node] * n))


def sbatch_option(name: str) -> str:
    found = re.search(rf"^#SBATCH --{name}=(\S+)$", DOCUMENTED[1].read_text(), re.MULTILINE)
    assert found
    return found[1]


def slurm_node() -> dict[str, float]:
    return {
        "CPU": float(sbatch_option("cpus-per-task")),
        "GPU": float(sbatch_option("gpus-per-node")),
    }


def test_every_recipe_with_gpus_is_compared():
    recipes = gpu_recipes()
    assert recipes
    others = [name for name in group_choices()["recipe"] if name not in recipes]
    # Pipelines and stages without a plan of GPUs have none of these keys set.
    configs = [load_config([f"recipe={name}"]) for name in others]
    assert [c.recipe for c in configs if c.generation.num_gpus or c.training.num_gpus] == []


@pytest.mark.parametrize("recipe", gpu_recipes())
def test_slurm_is_asked_for_the_nodes_of_the_recipe(recipe):
    needed = nodes_needed(recipe, slurm_node())
    default = int(sbatch_option("nodes"))
    asked = {
        path.name: [
            int(nodes or default)
            for nodes, name in SBATCH.findall(path.read_text())
            if name == recipe
        ]
        for path in DOCUMENTED
    }
    assert asked["launch.md"], f"docs/launch.md does not say how to start {recipe}"
    assert {number for numbers in asked.values() for number in numbers} == {needed}


@pytest.mark.parametrize("recipe", gpu_recipes())
def test_the_cloud_may_start_enough_nodes(recipe):
    cluster = yaml.safe_load((LAUNCH / "cluster.yaml").read_text())
    kinds = cluster["available_node_types"]
    head = kinds[cluster["head_node_type"]]["resources"]
    # The others are for small models.
    worker = kinds["gpu_8x80gb"]
    workers = min(cluster["max_workers"], worker["max_workers"])
    assert missing(plan_of(recipe), [head, *[worker["resources"]] * workers]) == []


@pytest.mark.parametrize("recipe", gpu_recipes())
def test_kubernetes_may_start_enough_nodes(recipe):
    groups = yaml.safe_load((LAUNCH / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    nodes = []
    for group in groups["workerGroupSpecs"]:
        asked = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        node = {"CPU": float(asked["cpu"]), "GPU": float(asked["nvidia.com/gpu"])}
        nodes += [node] * group["maxReplicas"]
    assert missing(plan_of(recipe), nodes) == []


@pytest.mark.parametrize("recipe", gpu_recipes())
def test_the_table_of_the_documentation(recipe):
    rows = {
        name: (int(gpus), int(nodes))
        for name, gpus, nodes in TABLE_ROW.findall(DOCUMENTED[0].read_text())
    }
    plan = plan_of(recipe)
    assert rows[recipe] == (plan.totals["GPU"], nodes_needed(recipe, slurm_node()))


def test_too_few_nodes_are_noticed():
    """The comparison itself can fail."""
    needed = nodes_needed("gpu_70b", slurm_node())
    assert missing(plan_of("gpu_70b"), [slurm_node()] * (needed - 1))
