"""The reference of the KL penalty, on one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import ReferenceConfig
from rlhf_ray.publish.bucket import WeightBucket
from rlhf_ray.records import RolloutGroup, TokenValues
from rlhf_ray.training.engine.deepspeed_engine import FrozenEngine
from rlhf_ray.training.engine.meeting import Meeting, limit_collectives
from rlhf_ray.training.engine.process import start_process
from rlhf_ray.training.forward.modules import PolicyForward, disable_dropout
from rlhf_ray.training.forward.scoring import score_distributions, score_groups
from rlhf_ray.training.forward.trial import try_policy
from rlhf_ray.training.roles.base import FrozenRole
from rlhf_ray.training.roles.row_trials import StartedModel, try_rows
from rlhf_ray.training.roles.start_models import policy_of_files
from rlhf_ray.training.weights.ema_reference import (
    EmaReference,
    Shapes,
    load_ema_reference,
    snapshot_ema_reference,
)


class Reference(FrozenRole):
    """Scores with fixed weights, or with an EMA of the policy's.

    One object per rank. All methods are called on all ranks together.

    Args:
        model: source of the weights, unless `reference.path` is set.
        temperature: sampling temperature of the log-probabilities.
        over_support: score all tokens that could be sampled, for a KL of whole distributions.
        decay: weight of the past in the EMA; see `moving_average`.
        timeout_s: longest wait of a collective operation for the other ranks.
    """

    def __init__(
        self,
        *,
        reference: ReferenceConfig,
        model: ModelConfig,
        temperature: float,
        seed: int,
        timeout_s: float,
        over_support: bool = False,
        decay: float = 0.0,
    ) -> None:
        self._settings = reference
        self._model_settings = replace(model, path=reference.path or model.path)
        self._temperature = temperature
        self._over_support = over_support
        self._seed = seed
        self._timeout_s = timeout_s
        self._decay = decay

    def start(
        self,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        *,
        meeting: Meeting | None = None,
    ) -> None:
        """Join the other ranks and load the model."""
        start_process(
            rank,
            world_size,
            master_addr,
            master_port,
            timeout_s=self._timeout_s,
            cpu_threads=self._settings.cpu_threads,
            seed=self._seed,
            on_gpu=self._settings.num_gpus > 0,
            meeting=meeting,
        )
        policy = policy_of_files(self._model_settings, self._settings)
        module = PolicyForward(policy, kernel=self._model_settings.head_kernel)
        disable_dropout(module)
        self._layout = try_policy(policy, self._model_settings, self._settings)
        self._started = FrozenEngine(module, self._settings)
        started = StartedModel(
            module=module,
            decoder=policy.get_decoder(),
            attention=self._model_settings.attention,
            predict=self._predict,
        )
        self._layout, self._sequences = try_rows(
            started, self._layout, self._settings, timeout_s=self._timeout_s
        )
        self._weights = EmaReference(policy, decay=self._decay)
        limit_collectives(self._timeout_s)

    def score(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Log-probabilities of the sampled tokens of this rank's groups, or over their support."""
        score = score_distributions if self._over_support else score_groups
        return score(self._predict, groups, layout=self._layout)

    def check_weights(self, shapes: Shapes) -> None:
        """Check that the reference can follow such a policy; see `EmaReference.check`."""
        self._weights.check(shapes)

    def begin_update(self) -> None:
        """Begin to receive the policy's weights; do not `score` before `finish_update`."""
        self._weights.begin()

    def load_bucket(self, bucket: WeightBucket) -> None:
        """Average a bucket of the policy's weights in; see `EmaReference.load`."""
        self._weights.load(bucket)

    def finish_update(self) -> None:
        """End an update; from here on `score` uses the new weights."""
        self._weights.finish()

    def save_checkpoint(self, folder: Path) -> None:
        """Write the current weights; all ranks call it."""
        self.snapshot(copies=False)(folder)
        torch.distributed.barrier()

    def snapshot(self, *, copies: bool = True) -> Callable[[Path], None]:
        """See `TrainedRole.snapshot`."""
        return snapshot_ema_reference(self._weights, self._settings, copies=copies)

    def load_checkpoint(self, folder: Path) -> None:
        """Resume from a folder of `save_checkpoint`, of any number of ranks; all ranks call it.

        Raises:
            ValueError: the folder is incomplete, of another dtype or of another model.
        """
        load_ema_reference(folder, self._weights, self._settings)

    def _predict(self, batch: MicroBatch) -> Tensor:
        assert self._started is not None, "call start() first"
        return self._started.forward(
            batch.input_ids,
            batch.hidden_index,
            batch.targets,
            self._temperature,
            batch.support_token_ids,
            batch.packing,
            False,  # entropies are not used and need no gradient
            self._over_support,
        )[0]
