"""Scenarios of ranks that hold a model's matrices in slices. See `scenarios`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlhf_ray.config.deepspeed.zero import TrainedZeroConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.publish.bucket import pack_buckets
from rlhf_ray.training.engine.process import stop_process
from tests.stack.training.adapted_scenarios import FROZEN, frozen
from tests.stack.training.ema_policy_scenarios import ema_policy
from tests.stack.training.ema_reference_scenarios import BUCKET_BYTES, follow, whole_weights
from tests.stack.training.mixture import with_texts
from tests.stack.training.preference_scenarios import judge, prefer
from tests.stack.training.rank import Rank, weights_of
from tests.stack.training.ranking_scenarios import rank_answers
from tests.stack.training.samples import VOCABULARY, groups_of
from tests.stack.training.scenarios import (
    in_chunks,
    of_sequences,
    policy_gradient,
    scores_between_updates,
    two_steps,
    two_steps_in_turns,
    value_gradient,
    whole_distributions,
)
from tests.stack.training.sequence_scenarios import (
    Scenario,
    Scene,
    learner_scores,
    reference_scores,
    reward_scores,
)
from tests.stack.training.sft_scenarios import learn_from_texts

# Adam's step hardly depends on the size of the gradient, unless epsilon is as large.
_GATHERED = TrainedZeroConfig(persistence_elements=0)
CLIPPED = {"gradient_clip_norm": 0.01, "adam_epsilon": 1e-2}


def in_slices(scenario: Scene, **settings: Any) -> Scenario:
    """Run a scenario with groups of two ranks that hold slices."""

    def run(here: Rank) -> dict[str, Any]:
        with here.in_groups(2, slices=True):
            return scenario(here, **settings)

    return run


def norms_of_heads(here: Rank, **settings: Any) -> dict[str, Any]:
    """A model with norms of heads and biases (Qwen3), and a head of its own."""
    folder = here.folder / f"qwen3_{here.world_size}_{here.rank}"
    shutil.copytree(here.folder / "policy", folder, dirs_exist_ok=True)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Qwen3ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    with patch.object(here, "model", ModelConfig(path=str(folder))):
        return two_steps(here, **settings) | policy_gradient(here, **settings)


def saved_files(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """The files of a model that is larger than one file, and of its EMA."""
    folder = here.folder / f"sliced_{name}_{here.world_size}"
    with here.in_files_of(10_000), here.learner(ema_decay=0.5, **settings) as learner:
        here.update(learner)
        learner.save_model(folder)
        learner.save_average(folder / "ema")
        shapes = learner.weight_shapes()
    return {
        "saved": _read(folder),
        "average": _read(folder / "ema"),
        "shapes": {key: list(shape) for key, shape in shapes.items()},
    }


def followed(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """A reference that follows the policy, and one that goes on from its checkpoint."""
    folder = here.folder / f"sliced_{name}_{here.world_size}"
    mine = groups_of(here.data, *([(0, 5)] if here.share == 0 else [(4, 5)]))
    with here.learner(zero_stage=2, warmup_steps=0) as learner:
        here.update(learner)
        buckets = list(pack_buckets(learner.named_weights(), BUCKET_BYTES))
        shapes = learner.weight_shapes()
    with here.reference(decay=0.9, **settings) as role:
        role.check_weights(shapes)
        role.score(mine)
        follow(role, buckets)
        scores = {s.prompt_id: s.values for s in role.score(mine)}
        weights = whole_weights(role)
        role.save_checkpoint(folder)
    with here.reference(decay=0.9, **settings) as role:
        role.load_checkpoint(folder)
        return {"scores": scores, "weights": weights, "loaded": whole_weights(role)}


def resumed(here: Rank, *, name: str, zero_stage: int, **settings: Any) -> dict[str, Any]:
    """Three steps in slices, and the last two again from a checkpoint at every ZeRO stage."""
    folder = here.folder / f"sliced_{name}_{here.world_size}"
    with here.in_groups(2, slices=True), here.learner(zero_stage=zero_stage, **settings) as learner:
        here.update(learner)
        learner.save_checkpoint(folder)
        straight = [here.update(learner) for _ in range(2)]
        weights = weights_of(learner)
    result: dict[str, Any] = {"straight": straight, "straight_weights": weights}
    for stage in (0, 1, 2, 3):
        with (
            here.in_groups(2, slices=True),
            here.learner(zero_stage=stage, **settings) as learner,
        ):
            learner.load_checkpoint(folder)
            result[f"resumed_{stage}"] = [here.update(learner) for _ in range(2)]
            result[f"resumed_weights_{stage}"] = weights_of(learner)
    with here.learner(zero_stage=zero_stage, **settings) as learner:
        try:
            learner.load_checkpoint(folder)
        except ValueError as error:
            result["refused"] = str(error)
    return result


def without_the_sum(here: Rank) -> dict[str, Any]:
    """Ranks whose layers leave out the exchange of their partial results."""

    def alone(self: Any, states: Tensor) -> Tensor:
        return states @ self.weight.transpose(-1, -2)

    layer = "deepspeed.module_inject.layers.LinearAllreduce.forward"
    with here.in_groups(2, slices=True), patch(layer, alone):
        try:
            with here.learner():
                return {"error": ""}
        except ValueError as error:
            # It ends before it has an engine, as its process does in a run.
            stop_process()
            return {"error": str(error)}


def _read(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


# By name: compared with one rank. The stages of all that every test lane runs.
QUICK: dict[str, tuple[Scene, tuple[int, ...]]] = {
    "policy_gradient": (policy_gradient, (0, 1, 2, 3)),
    "value_gradient": (value_gradient, (2,)),
}
MORE: dict[str, tuple[Scene, tuple[int, ...]]] = {
    "policy_gradient": (policy_gradient, (0, 1, 2, 3)),
    "value_gradient": (value_gradient, (0, 1, 2, 3)),
    "two_steps": (two_steps, (0, 1, 2, 3)),
    "clipped": (partial(policy_gradient, **CLIPPED), (0, 1, 2, 3)),
    "of_sequences": (of_sequences, (1, 3)),
    "whole_distributions": (whole_distributions, (0, 3)),
    "in_chunks": (in_chunks, (0, 3)),
    "gradient_checkpointing": (partial(policy_gradient, gradient_checkpointing=True), (0, 2, 3)),
    "with_texts": (with_texts, (2, 3)),
    "sft": (learn_from_texts, (0, 3)),
    "rank": (rank_answers, (0, 2)),
    "prefer": (prefer, (0, 3)),
    "judge": (judge, (2,)),
    "scores": (learner_scores, (0, 3)),
    "between": (scores_between_updates, (2, 3)),
    "reference": (reference_scores, (0, 3)),
    "reward": (reward_scores, (0, 3)),
    "frozen": (frozen, (0, 1, 3)),
    "in_turns": (two_steps_in_turns, (2, 3)),
    "offload_optimizer": (partial(two_steps, offload_optimizer=True), (1, 2)),
    "offload_all": (
        partial(two_steps, offload_optimizer=True, offload_parameters=True),
        (3,),
    ),
    "norms_of_heads": (norms_of_heads, (0, 1, 2, 3)),
    "packed": (partial(policy_gradient, layout="packed"), (2,)),
    # Small weights are gathered for each module, too.
    "gathered": (partial(policy_gradient, zero=_GATHERED), (3,)),
    "gathered_values": (partial(value_gradient, zero=_GATHERED), (3,)),
}
# They write files under a name.
NAMED: dict[str, tuple[Scene, tuple[int, ...]]] = {
    "ema": (ema_policy, (0, 1, 3)),
    "saved": (saved_files, (0, 2, 3)),
    "followed": (followed, (0, 3)),
}
BFLOAT16 = partial(two_steps, dtype="bfloat16")


def _in_slices(table: dict[str, tuple[Scene, tuple[int, ...]]]) -> dict[str, Scenario]:
    return {
        f"{name}_in_slices_zero_{stage}": in_slices(scenario, zero_stage=stage)
        for name, (scenario, stages) in table.items()
        for stage in stages
    }


def _named(scenario: Callable[..., Any], **settings: Any) -> Scenario:
    return partial(scenario, **settings)


SLICED: dict[int, dict[str, Scenario]] = {
    1: {name: scenario for name, (scenario, _) in QUICK.items()},
    2: {**_in_slices(QUICK), "without_the_sum": without_the_sum},
}
SLICE_MATRIX: dict[int, dict[str, Scenario]] = {
    1: {
        **{name: scenario for name, (scenario, _) in MORE.items()},
        **{name: _named(scenario, name=name) for name, (scenario, _) in NAMED.items()},
        # Which a rank alone has at some stages only.
        "in_turns": partial(two_steps_in_turns, zero_stage=2),
        "offload_optimizer": two_steps,
        "offload_all": two_steps,
        "bfloat16": BFLOAT16,
    },
    4: {
        **_in_slices(MORE),
        **{
            f"{name}_in_slices_zero_{stage}": in_slices(
                scenario, name=f"{name}_{stage}", zero_stage=stage
            )
            for name, (scenario, stages) in NAMED.items()
            for stage in stages
        },
        **_in_slices({"bfloat16": (BFLOAT16, (1, 2, 3))}),
        **{
            f"resumed_zero_{stage}": _named(resumed, name=f"resumed_{stage}", zero_stage=stage)
            for stage in (0, 1, 3)
        },
        "resumed_frozen_zero_2": _named(
            resumed, name="resumed_frozen", zero_stage=2, ema_decay=0.9, **FROZEN
        ),
    },
}
