"""One rank of the training tests: runs every scenario of its world size, saves what it saw.

    python worker.py RANK WORLD_SIZE MASTER_PORT MODEL_FOLDER OUTPUT_FOLDER

A process costs tens of seconds of imports, so that all scenarios share it; each has a process
group of its own, on the next port.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import CriticConfig, ReferenceConfig, TrainingConfig
from rlhf_ray.records import Experience, Prompt, RolloutGroup
from rlhf_ray.training.critic import Critic
from rlhf_ray.training.learner import Learner
from rlhf_ray.training.reference import Reference

LENGTHS = (5, 7, 9, 4, 12)
PROMPT_TOKENS = 2
TEMPERATURE = 0.7
KL_COEFFICIENT = 0.05
# What each rank of two gets: uneven token counts, and an empty micro-batch on rank 1.
SPLITS = {
    1: (((0, 1, 2, 3, 4), ((0, 1, 2), (3,), (4,))),),
    2: (((0, 1, 2, 3), ((0, 1), (2,), (3,))), ((4,), ((0,), (), ()))),
}


def samples(folder: Path) -> dict[str, Tensor]:
    """Five ragged samples with experience, made once by the test and read by every rank."""
    return torch.load(folder / "samples.pt", weights_only=True)


def make_experience(
    data: dict[str, Tensor], rows: tuple[int, ...], micro_batches: tuple[tuple[int, ...], ...]
) -> Experience:
    lengths = torch.tensor(LENGTHS)
    starts = lengths.cumsum(0) - lengths
    spans = [torch.arange(int(starts[r]), int(starts[r] + lengths[r])) for r in rows]
    index = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)
    fields = {name: tensor[index] for name, tensor in data.items()}
    return Experience(
        **fields,
        lengths=lengths[list(rows)],
        micro_batches=micro_batches,
        num_loss_tokens=int(data["loss_mask"].sum()),
        num_sequences=len(LENGTHS),
        old_is_current=False,
    )


def make_group(prompt_id: str, token_ids: Tensor, lengths: Tensor, mask: Tensor) -> RolloutGroup:
    num_samples = lengths.shape[0]
    return RolloutGroup(
        prompt=Prompt(
            prompt_id=prompt_id,
            stream_index=0,
            text="",
            token_ids=(),
            answer=None,
            source="test",
            seed=0,
            columns={},
        ),
        sample_indices=tuple(range(num_samples)),
        token_ids=token_ids,
        lengths=lengths,
        loss_mask=mask,
        generator_logprobs=torch.zeros(token_ids.shape[0]),
        weight_versions=torch.zeros(token_ids.shape[0], dtype=torch.int64),
        responses=("",) * num_samples,
        finish_reasons=("stop",) * num_samples,
        rewards=torch.zeros(0, dtype=torch.float64),
        reward_parts={},
        failures=(),
    )


def groups_of(data: dict[str, Tensor], *wanted: tuple[int, int]) -> list[RolloutGroup]:
    """Groups of consecutive samples: (first, last + 1)."""
    groups = []
    for first, end in wanted:
        start, stop = sum(LENGTHS[:first]), sum(LENGTHS[:end])
        groups.append(
            make_group(
                f"{first}-{end}",
                data["token_ids"][start:stop],
                torch.tensor(LENGTHS[first:end]),
                data["loss_mask"][start:stop],
            )
        )
    return groups


class Rank:
    """This process, and the roles that its scenarios start."""

    def __init__(self, rank: int, world_size: int, port: int, model: Path, output: Path) -> None:
        self.rank, self.world_size, self.output = rank, world_size, output
        self.model = ModelConfig(path=str(model), attention="sdpa")
        self.data = samples(model.parent)
        self._port = port
        rows, micro_batches = SPLITS[world_size][rank]
        self.experience = make_experience(self.data, rows, micro_batches)

    @contextmanager
    def _started(self, role: Any) -> Iterator[Any]:
        role.start(self.rank, self.world_size, "127.0.0.1", self._port)
        self._port += 1
        try:
            yield role
        finally:
            role.close()

    def learner(self, **settings: Any) -> Any:
        common: dict[str, Any] = {
            "dtype": "float32",
            "num_ranks": self.world_size,
            "cpu_threads": 1,
            "max_tokens_per_micro_batch": 16,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "warmup_steps": 3,
        }
        return self._started(
            Learner(
                training=TrainingConfig(**{**common, **settings}),
                algorithm=AlgorithmConfig(kl_coefficient=KL_COEFFICIENT, kl_estimator="k3"),
                model=self.model,
                temperature=TEMPERATURE,
                total_optimizer_steps=10,
                seed=0,
                timeout_s=60.0,
            )
        )

    def critic(self, **settings: Any) -> Any:
        common: dict[str, Any] = {
            "dtype": "float32",
            "num_ranks": self.world_size,
            "cpu_threads": 1,
            "max_tokens_per_micro_batch": 16,
            "learning_rate": 1e-2,
        }
        return self._started(
            Critic(
                critic=CriticConfig(**{**common, **settings}),
                algorithm=AlgorithmConfig(value_clip=0.2),
                model=self.model,
                total_optimizer_steps=10,
                seed=0,
                timeout_s=60.0,
            )
        )

    def reference(self, **settings: Any) -> Any:
        common: dict[str, Any] = {
            "dtype": "float32",
            "num_ranks": self.world_size,
            "cpu_threads": 1,
            "max_tokens_per_micro_batch": 16,
        }
        return self._started(
            Reference(
                reference=ReferenceConfig(**{**common, **settings}),
                model=self.model,
                temperature=TEMPERATURE,
                seed=0,
                timeout_s=60.0,
            )
        )


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_weights()}


def record_gradients(role: Any) -> list[dict[str, Tensor]]:
    """The list that every later optimiser step adds its whole, reduced gradient to."""
    engine, seen = role._engine, []
    take_step = engine.step

    def step() -> Any:
        parameters = engine.module.named_parameters()
        seen.append({name: safe_get_full_grad(p).clone() for name, p in parameters})
        return take_step()

    engine.step = step
    return seen


def two_steps(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        metrics = [
            learner.update([here.experience], kl_coefficient=KL_COEFFICIENT) for _ in range(2)
        ]
        return {"metrics": metrics, "weights": weights_of(learner)}


def policy_gradient(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        gradients = record_gradients(learner)
        metrics = learner.update([here.experience], kl_coefficient=KL_COEFFICIENT)
        return {"metrics": metrics, "gradient": gradients[0]}


def value_gradient(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.critic(**settings) as critic:
        scores = critic.score(groups_of(here.data, (0, 2), (2, 5)))
        gradients = record_gradients(critic)
        metrics = critic.update([here.experience])
        return {
            "metrics": metrics,
            "gradient": gradients[0],
            "scores": torch.cat([score.values for score in scores]),
        }


def resume(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Three steps with a checkpoint after the first; and the last two again from it."""
    folder = here.output / f"checkpoint_{name}_{here.world_size}"
    with here.learner(**settings) as learner:
        learner.update([here.experience], kl_coefficient=KL_COEFFICIENT)
        learner.save_checkpoint(folder)
        drawn = torch.rand(4)
        straight = [
            learner.update([here.experience], kl_coefficient=KL_COEFFICIENT) for _ in range(2)
        ]
        straight_weights = weights_of(learner)
    with here.learner(**settings) as learner:
        torch.rand(3)
        learner.load_checkpoint(folder)
        drawn_again = torch.rand(4)
        resumed = [
            learner.update([here.experience], kl_coefficient=KL_COEFFICIENT) for _ in range(2)
        ]
        return {
            "straight": straight,
            "resumed": resumed,
            "drawn": drawn,
            "drawn_again": drawn_again,
            "straight_weights": straight_weights,
            "resumed_weights": weights_of(learner),
        }


def critic_resume(here: Rank, **settings: Any) -> dict[str, Any]:
    folder = here.output / f"critic_checkpoint_{here.world_size}"
    groups = groups_of(here.data, (0, 5))
    with here.critic(**settings) as critic:
        critic.update([here.experience])
        critic.save_checkpoint(folder)
        straight = [critic.update([here.experience]), critic.score(groups)[0].values]
    with here.critic(**settings) as critic:
        critic.load_checkpoint(folder)
        return {
            "straight": straight,
            "resumed": [critic.update([here.experience]), critic.score(groups)[0].values],
        }


def saved_model(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        learner.update([here.experience], kl_coefficient=KL_COEFFICIENT)
        learner.save_model(here.output / f"model_{name}")
        return {"weights": weights_of(learner)}


def scores(here: Rank, make: Callable[..., Any], **settings: Any) -> dict[str, Any]:
    """Rank 0 has three groups, another rank one or none."""
    mine = [(0, 1), (1, 3), (3, 5)] if here.rank == 0 else [(4, 5)]
    with make(**settings) as role:
        result: dict[str, Any] = {
            "some": {s.prompt_id: s.values for s in role.score(groups_of(here.data, *mine))}
        }
        none = [] if here.rank else mine
        result["none"] = {s.prompt_id: s.values for s in role.score(groups_of(here.data, *none))}
        if isinstance(role, Learner):
            result["sequences"] = role.score_sequences([(1, 2, 3, 4), (9, 8), (5, 5, 5, 5, 5)])
        return result


def on_policy(here: Rank) -> dict[str, Any]:
    experience = replace(here.experience, old_is_current=True)
    with here.learner() as learner:
        return {"metrics": learner.update([experience], kl_coefficient=0.0)}


def other_micro_batches(here: Rank) -> dict[str, Any]:
    gradients = []
    for micro_batches in (((0, 1, 2, 3, 4),), ((4,), (0, 2), (1,), (3,))):
        experience = replace(here.experience, micro_batches=micro_batches)
        with here.learner() as learner:
            seen = record_gradients(learner)
            learner.update([experience], kl_coefficient=KL_COEFFICIENT)
            gradients.append(seen[0])
    return {"gradients": gradients}


def mismatch(here: Rank) -> dict[str, Any]:
    """Ranks with different numbers of micro-batches are refused, not left waiting."""
    rows = tuple(range(here.experience.lengths.shape[0]))
    split = (rows,) if here.rank == 0 else (rows, ())
    with here.learner() as learner:
        try:
            learner.update([replace(here.experience, micro_batches=split)], kl_coefficient=0.0)
        except ValueError as error:
            return {"error": str(error)}
    return {"error": ""}


def not_finite(here: Rank) -> dict[str, Any]:
    broken = replace(here.experience, advantages=here.experience.advantages * float("nan"))
    errors = {}
    for name, settings in {"zero_0": {}, "zero_2": {"zero_stage": 2}}.items():
        with here.learner(**settings) as learner:
            try:
                learner.update([broken], kl_coefficient=0.0)
            except RuntimeError as error:
                errors[name] = str(error)
    return {"errors": errors}


SCENARIOS: dict[int, dict[str, Callable[[Rank], dict[str, Any]]]] = {
    1: {
        "policy_gradient": policy_gradient,
        "value_gradient": value_gradient,
        "zero_0": two_steps,
        "gradient_checkpointing": lambda r: policy_gradient(r, gradient_checkpointing=True),
        "on_policy": on_policy,
        "other_micro_batches": other_micro_batches,
        "scores": lambda r: scores(r, r.learner),
        "saved_model": lambda r: saved_model(r, name="zero_0"),
        "not_finite": not_finite,
        "bfloat16_zero_0": lambda r: two_steps(r, dtype="bfloat16"),
    },
    2: {
        "policy_gradient": policy_gradient,
        "value_gradient": value_gradient,
        "policy_gradient_zero_3": lambda r: policy_gradient(r, zero_stage=3),
        "gradient_checkpointing_zero_3": lambda r: policy_gradient(
            r, zero_stage=3, gradient_checkpointing=True
        ),
        **{f"zero_{s}": lambda r, s=s: two_steps(r, zero_stage=s) for s in (0, 1, 2, 3)},
        "zero_0_again": two_steps,
        **{
            f"bfloat16_zero_{s}": lambda r, s=s: two_steps(r, zero_stage=s, dtype="bfloat16")
            for s in (0, 1, 2, 3)
        },
        **{
            f"offload_optimizer_zero_{s}": lambda r, s=s: two_steps(
                r, zero_stage=s, offload_optimizer=True
            )
            for s in (1, 2, 3)
        },
        "offload_all_zero_3": lambda r: two_steps(
            r, zero_stage=3, offload_optimizer=True, offload_parameters=True
        ),
        **{
            f"resume_zero_{s}": lambda r, s=s: resume(r, name=f"zero_{s}", zero_stage=s)
            for s in (0, 1, 2, 3)
        },
        "resume_bfloat16_zero_0": lambda r: resume(r, name="bfloat16", dtype="bfloat16"),
        "critic_resume_zero_2": lambda r: critic_resume(r, zero_stage=2),
        "saved_model_zero_3": lambda r: saved_model(r, name="zero_3", zero_stage=3),
        "scores_zero_0": lambda r: scores(r, r.learner),
        "scores_zero_3": lambda r: scores(r, r.learner, zero_stage=3),
        "reference_zero_0": lambda r: scores(r, r.reference),
        "reference_zero_3": lambda r: scores(r, r.reference, zero_stage=3),
        "mismatch": mismatch,
    },
}


def main() -> None:
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    model, output = Path(sys.argv[4]), Path(sys.argv[5])
    here = Rank(rank, world_size, port, model, output)
    only = sys.argv[6:]
    results = {}
    for name, scenario in SCENARIOS[world_size].items():
        if not only or name in only:
            print(f"scenario {name}", flush=True)
            results[name] = scenario(here)
    torch.save(results, output / f"results_{world_size}_{rank}.pt")


if __name__ == "__main__":
    main()
