"""Resource plans against what was worked out by hand."""

from __future__ import annotations

import pytest

from rlhf_ray.cluster.resource_plan import describe, describe_nodes, missing
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.config.load import load_config

GPU_NODE = {"CPU": 64.0, "GPU": 8.0, "memory": 1e12}
COLOCATED = [
    "recipe=gpu_7b",
    "placement=colocated",
    "max_staleness=0",
    "generation.num_engines=4",
    "generation.tensor_parallel_size=2",
    "training.num_ranks=8",
]


def _plan(*overrides):
    return resource_plan(load_config(overrides))


def _role(plan, name):
    (role,) = [role for role in plan.roles if role.role == name]
    return role


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        (["recipe=demo"], ["generator", "learner", "reference", "reward", "builder"]),
        (
            ["recipe=demo", "algorithm.kl_coefficient=0"],
            ["generator", "learner", "reward", "builder"],
        ),
        (
            ["recipe=demo", "training.lora.r=8"],
            ["generator", "learner", "reward", "builder"],
        ),
        *(
            (
                ["recipe=demo", "training.lora.r=8", own],
                ["generator", "learner", "reference", "reward", "builder"],
            )
            for own in ("reference.source=own", "reference.path=another/model")
        ),
        (
            ["recipe=demo_ppo"],
            ["generator", "learner", "critic", "reference", "reward", "builder"],
        ),
        (
            ["recipe=demo_ppo", "placement=colocated"],
            ["generator", "learner", "critic", "reference", "reward", "builder"],
        ),
        (
            ["recipe=demo", "reward.functions=[]", "reward.model.path=a/b"],
            ["generator", "learner", "reference", "reward_model", "reward", "builder"],
        ),
        (
            ["recipe=demo", "placement=colocated", "reward.model.path=a/b"],
            ["generator", "learner", "reference", "reward_model", "reward", "builder"],
        ),
        (
            ["recipe=demo", "reward.url=http://a", "reward.judge.model=policy"],
            [
                *("generator", "learner", "reference", "http_reward", "judge_scorer", "reward"),
                "builder",
            ],
        ),
        (
            ["recipe=demo", "reward.judge.model=a/b"],
            ["generator", "learner", "reference", "judge", "judge_scorer", "reward", "builder"],
        ),
    ],
)
def test_roles_that_run(overrides, roles):
    assert [role.role for role in _plan(*overrides).roles] == roles


@pytest.mark.parametrize("placement", ["disaggregated", "colocated"])
@pytest.mark.parametrize("recipe", ["demo", "demo_ppo", "smollm2_grpo"])
def test_cpu_recipes_fit_two_cores(recipe, placement):
    plan = _plan(f"recipe={recipe}", f"placement={placement}")
    assert missing(plan, [{"CPU": 2.0}]) == []
    assert plan.totals["GPU"] == 0


def test_a_reward_model_has_bundles_of_its_own():
    ranks = ["reward.model.path=a/b", "reward.model.num_ranks=3"]
    for overrides in (["recipe=gpu_7b"], COLOCATED):
        plan = _plan(*overrides, *ranks)
        role = _role(plan, "reward_model")
        assert (role.num_actors, role.num_gpus) == (3, 1)
        assert [plan.roles_in(i) for i in role.bundle_indices] == [["reward_model"]] * 3
        assert plan.totals["GPU"] == _plan(*overrides).totals["GPU"] + 3
    small = _plan("recipe=demo_ppo", "reward.model.path=a/b")
    assert missing(small, [{"CPU": 2.0}]) == []


def test_engines_of_a_judge():
    judge = ["reward.judge.model=a/b", "reward.judge.num_engines=3", "reward.judge.num_gpus=1"]
    plan = _plan("recipe=gpu_7b", *judge, "reward.judge.tensor_parallel_size=2")
    role = _role(plan, "judge")
    assert (role.num_actors, role.num_gpus) == (3, 2.0)
    assert _role(plan, "judge_scorer").num_gpus == 0


def test_every_actor_fits_its_bundle():
    with_scorer = ["recipe=demo_ppo", "reward.model.path=a/b", "reward.model.num_ranks=2"]
    for overrides in (["recipe=demo_ppo"], ["recipe=gpu_70b"], COLOCATED, with_scorer):
        plan = _plan(*overrides)
        used = [{"CPU": 0.0, "GPU": 0.0} for _ in plan.bundles]
        for role in plan.roles:
            for index in role.bundle_indices:
                used[index]["CPU"] += role.num_cpus
                used[index]["GPU"] += role.num_gpus
        assert used == [pytest.approx(bundle) for bundle in plan.bundles]


def test_disaggregated_gives_every_actor_a_bundle():
    plan = _plan("recipe=gpu_70b")
    indices = [index for role in plan.roles for index in role.bundle_indices]
    assert indices == list(range(len(plan.bundles)))
    assert plan.bundles[0] == {"CPU": 8.0, "GPU": 8.0}
    assert _role(plan, "generator").num_gpus == 8
    assert plan.totals == {"CPU": 68.1, "GPU": 64.0}
    assert plan.strategy == "PACK"


@pytest.mark.parametrize("kind", ["sequence", "tensor"])
def test_ranks_that_compute_samples_together_are_one_bundle(kind):
    split = [f"training.{kind}_parallel_size=8", f"reference.{kind}_parallel_size=4"]
    plan = _plan("recipe=gpu_70b", *split)
    learner, reference = _role(plan, "learner"), _role(plan, "reference")
    assert [learner.bundle_indices.count(index) for index in set(learner.bundle_indices)] == [8] * 4
    assert learner.bundle_indices == tuple(sorted(learner.bundle_indices))
    assert plan.bundles[learner.bundle_indices[0]] == {"CPU": 8.0, "GPU": 8.0}
    assert plan.bundles[reference.bundle_indices[-1]]["GPU"] == 4
    assert plan.totals == _plan("recipe=gpu_70b").totals
    # A group that reaches over nodes of four GPUs is refused, even if there are enough of them.
    lacking = missing(plan, [{"CPU": 64.0, "GPU": 4.0}] * 32)
    assert "learner: 4 of 4 bundles with 8 GPUs and 8 CPUs fit on no node" in lacking


def test_colocated_engine_lives_with_its_ranks():
    plan = _plan(*COLOCATED)
    generator, learner = _role(plan, "generator"), _role(plan, "learner")
    assert generator.bundle_indices == (0, 1, 2, 3)
    assert learner.bundle_indices == (0, 0, 1, 1, 2, 2, 3, 3)
    assert (generator.num_gpus, learner.num_gpus) == (0, 1)
    assert plan.bundles[:4] == ({"CPU": 3.0, "GPU": 2.0},) * 4
    assert plan.totals["GPU"] == 8
    assert "generator and learner share bundles 0-3" in describe(plan)


@pytest.mark.parametrize(
    ("engines", "ranks", "expected"),
    [(1, 3, (0, 0, 0)), (2, 3, (0, 0, 1)), (3, 2, (0, 1)), (2, 2, (0, 1))],
)
def test_colocated_on_cpus_takes_any_numbers(engines, ranks, expected):
    plan = _plan(
        "recipe=demo",
        "placement=colocated",
        f"generation.num_engines={engines}",
        f"training.num_ranks={ranks}",
    )
    assert _role(plan, "learner").bundle_indices == expected
    assert plan.totals["CPU"] == pytest.approx(0.5 * (engines + ranks) + 0.3 + 0.1 + 0.1)


def test_spread():
    assert _plan("recipe=demo", "placement.spread=true").strategy == "SPREAD"


def test_describe():
    assert describe(_plan("recipe=demo")).splitlines() == [
        "role       actors  CPUs each  GPUs each  bundles",
        "generator       1        0.5          0  0",
        "learner         1        0.5          0  1",
        "reference       1        0.3          0  2",
        "reward          1        0.1          0  3",
        "builder         1        0.1          0  4",
        "total: 1.5 CPUs, 0 GPUs in 5 bundles (PACK)",
    ]


@pytest.mark.parametrize(
    ("recipe", "num_nodes", "fits"),
    [("gpu_7b", 1, True), ("gpu_70b", 8, True), ("gpu_70b", 7, False)],
)
def test_gpu_recipes(recipe, num_nodes, fits):
    assert (missing(_plan(f"recipe={recipe}"), [GPU_NODE] * num_nodes) == []) is fits


def test_a_bundle_is_never_split_over_nodes():
    # 8 GPUs in all, but an engine of 8 ranks needs them on one node.
    plan = _plan(
        "recipe=gpu_7b",
        "generation.num_engines=1",
        "generation.tensor_parallel_size=8",
        "training=cpu",
        "model.attention=sdpa",
    )
    assert missing(plan, [{"CPU": 32.0, "GPU": 8.0}]) == []
    (sentence,) = missing(plan, [{"CPU": 32.0, "GPU": 4.0}] * 2)
    assert sentence == ("generator: 1 of 1 bundles with 8 GPUs and 1 CPUs fit on no node")


def test_the_largest_bundles_are_placed_first():
    # Ranks of one GPU that came first would leave no node whole for the engine.
    plan = _plan(
        "recipe=gpu_7b",
        "generation.num_engines=1",
        "generation.tensor_parallel_size=8",
        "training.num_ranks=8",
    )
    assert missing(plan, [GPU_NODE, GPU_NODE]) == []


def test_missing_names_every_role_without_a_place():
    # Engine and learner (0.5 each) take the whole core; the smaller ones find nothing left.
    sentences = missing(_plan("recipe=demo"), [{"CPU": 1.0}])
    assert [sentence.split(":")[0] for sentence in sentences] == ["builder", "reference", "reward"]
    assert all("find no room next to the larger ones" in sentence for sentence in sentences)


def test_only_what_fits_on_no_node_is_named():
    # The engine needs 4 CPUs; without it the others would have room, and are not to blame.
    plan = _plan("recipe=demo", "generation.num_cpus=4", "training.num_cpus=1.5")
    assert missing(plan, [{"CPU": 2.0}]) == [
        "generator: 1 of 1 bundles with 0 GPUs and 4 CPUs fit on no node"
    ]


def test_nodes_are_described_once_and_together():
    assert describe_nodes([{"CPU": 2.0}]) == "0 GPUs and 2 CPUs on 1 node"
    assert describe_nodes([GPU_NODE, {"CPU": 4.0}]).endswith("CPUs on one")
    assert len(describe_nodes([GPU_NODE] * 64)) < 100


def test_no_node_at_all():
    sentences = missing(_plan("recipe=demo"), [])
    assert len(sentences) == 5
    assert all("fit on no node" in sentence for sentence in sentences)
    assert describe_nodes([]) == "no node"


def test_parts_of_a_cpu_add_up_exactly():
    # 0.1 ten times is less than 1 in binary, more than 1 the other way round.
    plan = _plan("recipe=demo", "reward.num_workers=5", "algorithm.kl_coefficient=0")
    assert plan.totals["CPU"] == 1.6
    assert missing(plan, [{"CPU": 1.6}]) == []
    assert missing(plan, [{"CPU": 1.5999}]) != []


def test_only_ranks_learn_from_examples():
    """No engine, no reward, no critic, no reference, whatever else the recipe says."""
    fit = ["stage=pretrain", "examples.path=x", "training.num_ranks=3", "training.num_cpus=0.5"]
    plan = _plan("recipe=demo_ppo", "placement=colocated", *fit)
    (learner,) = plan.roles
    assert (learner.role, learner.num_actors, learner.bundle_indices) == ("learner", 3, (0, 1, 2))
    assert plan.bundles == ({"CPU": 0.5, "GPU": 0.0},) * 3
    assert describe(plan).endswith("total: 1.5 CPUs, 0 GPUs in 3 bundles (PACK)")


STAGED = [
    *("recipe=gpu_7b", "generation.num_engines=2", "generation.tensor_parallel_size=2"),
    "generation.pipeline_parallel_size=4",
]


def test_workers_of_an_engine_in_stages_have_bundles_on_any_node():
    plan = _plan(*STAGED)
    engines = _role(plan, "generator")
    # A bundle for each of its 2 x 4 workers; the first also holds the actor, which asks for no GPU.
    assert engines.num_gpus == 0.0
    assert engines.bundle_indices == (0, 1)
    assert engines.worker_bundles == ((0, *range(2, 9)), (1, *range(9, 16)))
    assert [plan.bundles[i] for i in engines.bundle_indices] == [{"CPU": 1.0, "GPU": 1.0}] * 2
    assert all(plan.bundles[i] == {"CPU": 0.0, "GPU": 1.0} for i in range(2, 16))
    assert plan.totals["GPU"] == 16 + 4
    assert "0-15" in describe(plan)
    # Five nodes of four GPUs hold it, where one engine of eight GPUs in one bundle found no place.
    small = [{"CPU": 32.0, "GPU": 4.0}] * 5
    assert missing(plan, small) == []
    (lacking,) = missing(_plan(*STAGED[:-1], "generation.tensor_parallel_size=8"), small)
    assert lacking.startswith("generator: 2 of 2 bundles with 8 GPUs")
    (lacking,) = missing(plan, small[:4])
    assert "1 GPUs" in lacking


def test_copies_of_a_model_in_one_engine_are_in_its_bundle():
    plan = _plan(*STAGED[:-1], "generation.data_parallel_size=2")
    engines = _role(plan, "generator")
    assert engines.worker_bundles == ()
    assert [plan.bundles[i]["GPU"] for i in engines.bundle_indices] == [4.0, 4.0]
