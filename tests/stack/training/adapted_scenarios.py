"""Scenarios that train a part of a model: frozen weights and adapters. See `scenarios`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlhf_ray.config.groups.lora import LoraConfig
from tests.stack.training.rank import Rank, record_gradients, weights_of
from tests.stack.training.ranking_scenarios import MAX_TOKENS, own_rankings
from tests.stack.training.samples import groups_of

# The tied embedding, layer 0 and some weights of layer 1.
FROZEN = {"freeze_layers": 1, "freeze": ["model.norm.*", "*.1.mlp.*"]}
LORA = LoraConfig(r=4, alpha=8)
LEARNING = {"warmup_steps": 0, "lora": LORA}


def frozen(here: Rank, **settings: Any) -> dict[str, Any]:
    """Two steps with some weights frozen, with weight decay and an EMA."""
    with here.learner(ema_decay=0.5, warmup_steps=0, **FROZEN, **settings) as learner:
        gradients = record_gradients(learner)
        before = weights_of(learner)
        metrics = [here.update(learner) for _ in range(2)]
        average = learner._engine.ema.named_weights(learner._model)
        return {
            "before": before,
            "after": weights_of(learner),
            "average": {name: tensor.clone() for name, tensor in average},
            "metrics": metrics,
            "gradient": gradients[0],
            "num_states": _num_states(learner),
        }


def adapted(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Three steps with a checkpoint after the first, scores with and without the adapter.

    Between the steps the reference's log-probabilities are asked for, as a run does it.
    """
    folder = here.folder / f"adapted_{name}_{here.world_size}"
    mine = groups_of(here.data, *([(0, 5)] if here.share == 0 else []))
    with here.learner(**LEARNING, **settings) as learner:
        gradients = record_gradients(learner)
        before = weights_of(learner)
        metrics, references, pieces = [], [], {}
        for number in range(3):
            references.append([s.values for s in learner.score_reference(mine)])
            metrics.append(here.update(learner))
            if number == 0:
                learner.save_checkpoint(folder / "checkpoint")
                pieces = saved_pieces(folder / "checkpoint")
        references.append([s.values for s in learner.score_reference(mine)])
        learner.save_model(folder / "model")
        result = {
            "before": before,
            "after": weights_of(learner),
            "adapter": {key: weight.clone() for key, weight in learner.adapter_weights()},
            "shapes": learner.weight_shapes(),
            "metrics": metrics,
            "gradients": gradients,
            "references": references,
            "scores": [s.values for s in learner.score(mine)],
            "num_states": _num_states(learner),
            "pieces": pieces,
        }
    with here.learner(**LEARNING, **settings) as learner:
        learner.load_checkpoint(folder / "checkpoint")
        resumed = [here.update(learner) for _ in range(2)]
        return {**result, "resumed": resumed, "resumed_weights": weights_of(learner)}


def saved_pieces(folder: Path) -> dict[str, list[int]]:
    """Number of bytes and of elements of every piece in the files of a checkpoint."""
    sizes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_tensor(key)
                sizes[key] = [tensor.numel() * tensor.element_size(), tensor.numel()]
    return sizes


def reference_of_start(here: Rank, **settings: Any) -> dict[str, Any]:
    """Scores of a separate reference."""
    mine = groups_of(here.data, *([(0, 5)] if here.share == 0 else []))
    with here.reference(**settings) as reference:
        return {"values": [s.values for s in reference.score(mine)]}


def adapted_values(here: Rank, **settings: Any) -> dict[str, Any]:
    """A critic with an adapter: the head is trained too."""
    groups = groups_of(here.data, (0, 5))
    with here.critic(lora=LORA, **settings) as critic:
        before = critic.score(groups)[0].values
        gradients = record_gradients(critic)
        metrics = [critic.update([here.experience]) for _ in range(2)]
        return {
            "before": before,
            "after": critic.score(groups)[0].values,
            "metrics": metrics,
            "gradient": gradients[0],
        }


def adapted_reward_model(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Learn from rankings with an adapter, and save the model."""
    samples = own_rankings(here, "padded")
    settings = {"path": "policy", "max_tokens_per_micro_batch": MAX_TOKENS, **settings}
    folder = here.folder / f"adapted_reward_model_{here.world_size}_{name}"
    with here.reward_trainer(**LEARNING, **settings) as trainer:
        before = trainer.evaluate(samples)
        metrics = [trainer.update([samples]) for _ in range(3)]
        trainer.save_model(folder)
        return {"before": before, "metrics": metrics, "after": trainer.evaluate(samples)}


def _num_states(role: Any) -> int:
    """Number of elements of this rank's optimizer states."""
    states = role._engine._engine.basic_optimizer.state.values()
    tensors = [value for state in states for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() for tensor in tensors if tensor.dim() > 0)


def _stages(scenario: Callable[..., Any], stages: tuple[int, ...]) -> dict[str, Callable]:
    prefix = scenario.__name__
    return {f"{prefix}_zero_{s}": partial(scenario, zero_stage=s) for s in stages}


def _named(scenario: Callable[..., Any], stages: tuple[int, ...]) -> dict[str, Callable]:
    prefix = scenario.__name__
    return {f"{prefix}_zero_{s}": partial(scenario, name=f"zero_{s}", zero_stage=s) for s in stages}


ADAPTED: dict[int, dict[str, Callable[[Rank], Any]]] = {
    1: {
        **_stages(frozen, (0,)),
        **_named(adapted, (0,)),
        "adapted_bfloat16": partial(adapted, name="bfloat16", dtype="bfloat16"),
        "reference_of_start": reference_of_start,
        **_stages(adapted_values, (0,)),
        **_named(adapted_reward_model, (0,)),
    },
    2: {
        **_stages(frozen, (0, 1, 2, 3)),
        **_named(adapted, (0, 1, 2, 3)),
        "reference_of_start": reference_of_start,
        **_stages(adapted_values, (0, 3)),
        **_named(adapted_reward_model, (3,)),
    },
}
