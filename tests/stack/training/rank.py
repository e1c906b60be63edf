"""One process of the training tests: roles for its scenarios, and measurements on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import CriticConfig, ReferenceConfig, TrainingConfig
from rlhf_ray.records import Coefficients, Experience
from rlhf_ray.training.engine.slicing.tensor_slice import slice_of
from rlhf_ray.training.forward import head_logprobs
from rlhf_ray.training.roles.critic import Critic
from rlhf_ray.training.roles.learner import Learner
from rlhf_ray.training.roles.reference import Reference
from rlhf_ray.training.roles.reward_model_trainer import RewardModelTrainer
from rlhf_ray.training.roles.sft_trainer import SftTrainer
from tests.stack.training.samples import (
    KL_COEFFICIENT,
    MAX_RESPONSE_TOKENS,
    SPLITS,
    TEMPERATURE,
    load_samples,
    make_experience,
)

TOTAL_OPTIMIZER_STEPS = 10
CENTRING_COEFFICIENT = 0.1
LEARNER = {"learning_rate": 1e-2, "weight_decay": 0.1, "warmup_steps": 3, "schedule": "cosine"}

GRPO = AlgorithmConfig(kl_coefficient=KL_COEFFICIENT, kl_estimator="k3")


class Rank:
    """This process. Every role has its own process group, on the next port.

    Args:
        folder: with `policy`, `other_policy` and `reward_model` (models) and samples.pt.
    """

    def __init__(self, rank: int, world_size: int, port: int, folder: Path) -> None:
        self.rank, self.world_size, self.folder = rank, world_size, folder
        self.model = ModelConfig(path=str(folder / "policy"))
        self.data = load_samples(folder)
        self._port = port
        self._group_size = 1
        self._are_slices = False
        self.experience = self._own_experience()

    @property
    def share(self) -> int:
        """Number of the samples that this rank has, of `num_shares`."""
        return self.rank // self._group_size

    @property
    def num_shares(self) -> int:
        return self.world_size // self._group_size

    def plan(self, max_tokens: int, *, layout: str = "padded") -> RankPlan:
        """Plan of forward passes of `max_tokens` on one rank."""
        return RankPlan(
            num_ranks=self.num_shares,
            max_tokens_per_micro_batch=max_tokens,
            layout=layout,
            sequence_parallel_size=1 if self._are_slices else self._group_size,
        )

    def _own_experience(self) -> Experience:
        return make_experience(self.data, *SPLITS[self.num_shares][self.share])

    @contextmanager
    def in_groups(self, size: int, *, slices: bool = False) -> Iterator[None]:
        """Give roles groups of this many ranks, which have the same samples, for a block.

        Args:
            slices: each holds slices of the matrices, and not pieces of the samples.
        """
        self._group_size, self._are_slices = size, slices
        self.experience = self._own_experience()
        try:
            yield
        finally:
            self._group_size, self._are_slices = 1, False
            self.experience = self._own_experience()

    @contextmanager
    def in_files_of(self, num_bytes: int) -> Iterator[None]:
        """Write models in files of this size for a block."""
        before = self.model
        self.model = replace(before, max_file_bytes=num_bytes)
        try:
            yield
        finally:
            self.model = before

    @contextmanager
    def on_model(self, name: str) -> Iterator[None]:
        """Start roles from another model of the folder for a block."""
        before = self.model
        self.model = replace(before, path=str(self.folder / name))
        try:
            yield
        finally:
            self.model = before

    def _role_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        common = {
            "dtype": "float32",
            "num_ranks": self.world_size,
            f"{'tensor' if self._are_slices else 'sequence'}_parallel_size": self._group_size,
            "cpu_threads": 1,
            "max_tokens_per_micro_batch": 16,
        }
        return common | settings

    @contextmanager
    def _started(self, role: Any) -> Iterator[Any]:
        self._port += 1
        try:
            role.start(self.rank, self.world_size, "127.0.0.1", self._port - 1)
            yield role
        finally:
            role.close()

    def learner(self, algorithm: AlgorithmConfig = GRPO, **settings: Any) -> Any:
        return self._started(
            Learner(
                training=TrainingConfig(**self._role_settings(LEARNER | settings)),
                algorithm=algorithm,
                model=self.model,
                max_response_tokens=MAX_RESPONSE_TOKENS,
                temperature=TEMPERATURE,
                total_optimizer_steps=TOTAL_OPTIMIZER_STEPS,
                seed=0,
                timeout_s=60.0,
            )
        )

    def sft_trainer(self, *, random_weights: bool = False, **settings: Any) -> Any:
        """Random weights are those of seed 1."""
        return self._started(
            SftTrainer(
                training=TrainingConfig(**self._role_settings(LEARNER | settings)),
                model=replace(self.model, random_weights=random_weights),
                total_optimizer_steps=TOTAL_OPTIMIZER_STEPS,
                seed=int(random_weights),
                timeout_s=60.0,
            )
        )

    def critic(self, **settings: Any) -> Any:
        """Starts from the reward model, whose head is not zero."""
        settings = {
            "learning_rate": 1e-2,
            "path": str(self.folder / "reward_model"),
            **settings,
        }
        return self._started(
            Critic(
                critic=CriticConfig(**self._role_settings(settings)),
                algorithm=AlgorithmConfig(value_clip=0.2),
                model=self.model,
                total_optimizer_steps=TOTAL_OPTIMIZER_STEPS,
                seed=0,
                timeout_s=60.0,
            )
        )

    def reward_trainer(self, *, path: str = "reward_model", **settings: Any) -> Any:
        """Starts from the reward model, whose head is not zero."""
        return self._started(
            RewardModelTrainer(
                training=TrainingConfig(**self._role_settings(LEARNER | settings)),
                model=ModelConfig(
                    path=str(self.folder / path), tokenizer_path=str(self.folder / "policy")
                ),
                total_optimizer_steps=TOTAL_OPTIMIZER_STEPS,
                seed=0,
                timeout_s=60.0,
                centring_coefficient=CENTRING_COEFFICIENT,
            )
        )

    def reference(self, *, over_support: bool = False, decay: float = 0.0, **settings: Any) -> Any:
        return self._started(
            Reference(
                reference=ReferenceConfig(**self._role_settings(settings)),
                decay=decay,
                model=self.model,
                temperature=TEMPERATURE,
                seed=0,
                timeout_s=60.0,
                over_support=over_support,
            )
        )

    @property
    def coefficients(self) -> Coefficients:
        return Coefficients(kl=KL_COEFFICIENT)

    def update(self, learner: Learner) -> dict[str, float]:
        return learner.update([self.experience], coefficients=self.coefficients)


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_weights()}


@contextmanager
def small_chunks(num_elements: int) -> Iterator[None]:
    """Set the size of a chunk of logits for a `with` block."""
    tables = (head_logprobs._CHUNK_ELEMENTS, head_logprobs._KEPT_ELEMENTS)
    before = [table["cpu"] for table in tables]
    for table in tables:
        table["cpu"] = num_elements
    try:
        yield
    finally:
        for table, number in zip(tables, before, strict=True):
            table["cpu"] = number


def record_gradients(role: Any) -> list[dict[str, Tensor]]:
    """Return a list that collects the whole, reduced gradient of every later optimiser step."""
    engine, seen = role._engine, []
    take_step = engine.step

    def step() -> Any:
        trained = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
        seen.append({name: _whole_gradient(p) for name, p in trained})
        return take_step()

    engine.step = step
    return seen


def _whole_gradient(parameter: Any) -> Tensor:
    own, part = safe_get_full_grad(parameter), slice_of(parameter)
    assert own is not None
    own = own.clone()  # Clipping changes it in place.
    return own if part is None else part.joined(own)


def record_rows(role: Any) -> list[tuple[int, ...]]:
    """Return a list that collects the shape of the rows of every later forward pass."""
    engine, seen = role._engine, []
    run = engine.forward

    def forward(input_ids: Tensor, *inputs: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return run(input_ids, *inputs)

    engine.forward = forward
    return seen


def buffer_dtypes(learner: Learner) -> set[torch.dtype]:
    return {buffer.dtype for buffer in learner._engine.module.buffers()}
