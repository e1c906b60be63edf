"""The reference: what the policy must not stray from, on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.row_layout import row_layout
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import ReferenceConfig
from rlhf_ray.models.loading import load_policy
from rlhf_ray.publish.bucket import WeightBucket
from rlhf_ray.records import RolloutGroup, TokenValues
from rlhf_ray.training.engine.deepspeed_engine import FrozenEngine, start_process
from rlhf_ray.training.forward.modules import PolicyForward, disable_dropout
from rlhf_ray.training.forward.scoring import score_distributions, score_groups
from rlhf_ray.training.roles.base import FrozenRole
from rlhf_ray.training.weights.ema_reference import (
    EmaReference,
    Shapes,
    load_ema_reference,
    save_ema_reference,
)


class Reference(FrozenRole):
    """Scores with weights that nobody trains: fixed, or following the policy's.

    One object per rank. All methods are called on all ranks together.

    Args:
        model: where the weights come from, unless `reference.path` says otherwise.
        temperature: of the sampling; log-probabilities are at it.
        of_all_kept: score all tokens that could be sampled, for a KL of whole distributions.
        decay: weight of the past where the weights follow the policy's; see `moving_average`.
        timeout_s: how long a collective operation waits for the other ranks.
    """

    def __init__(
        self,
        *,
        reference: ReferenceConfig,
        model: ModelConfig,
        temperature: float,
        seed: int,
        timeout_s: float,
        of_all_kept: bool = False,
        decay: float = 0.0,
    ) -> None:
        self._settings = reference
        self._model_settings = replace(model, path=reference.path or model.path)
        self._temperature = temperature
        self._of_all_kept = of_all_kept
        self._seed = seed
        self._timeout_s = timeout_s
        self._decay = decay

    def start(self, rank: int, world_size: int, master_addr: str, master_port: int) -> None:
        """Join the other ranks, load the model."""
        start_process(
            rank,
            world_size,
            master_addr,
            master_port,
            timeout_s=self._timeout_s,
            cpu_threads=self._settings.cpu_threads,
            seed=self._seed,
            on_gpu=self._settings.num_gpus > 0,
        )
        policy = load_policy(self._model_settings, dtype=self._settings.dtype)
        module = PolicyForward(policy, kernel=self._model_settings.head_kernel)
        disable_dropout(module)
        module.check_head()
        attention = self._model_settings.attention
        self._layout = row_layout(module.model.get_decoder(), self._settings, attention)
        self._started = FrozenEngine(module, self._settings)
        self._weights = EmaReference(policy, decay=self._decay)

    def score(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Log-probabilities of the sampled tokens of this rank's groups; or of all kept ones."""
        score = score_distributions if self._of_all_kept else score_groups
        return score(self._predict, groups, layout=self._layout)

    def check_weights(self, shapes: Shapes) -> None:
        """Refuse to follow a policy with such weights; see `EmaReference.check`."""
        self._weights.check(shapes)

    def begin_update(self) -> None:
        """The policy's weights are about to come; `score` waits until `finish_update`."""
        self._weights.begin()

    def load_bucket(self, bucket: WeightBucket) -> None:
        """Take in some of the policy's weights; see `EmaReference.load`."""
        self._weights.load(bucket)

    def finish_update(self) -> None:
        """All have come; `score` is of the new weights from here on."""
        self._weights.finish()

    def save_checkpoint(self, folder: Path) -> None:
        """Write where the weights have moved to; every rank calls it."""
        save_ema_reference(folder, self._weights, self._settings)

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from what `save_checkpoint` wrote; every rank calls it.

        Raises:
            ValueError: it is incomplete, or of another number of ranks, ZeRO stage or dtype.
        """
        load_ema_reference(folder, self._weights, self._settings)

    def _predict(self, batch: MicroBatch) -> Tensor:
        assert self._started is not None, "call start() first"
        return self._started.forward(
            batch.input_ids,
            batch.hidden_index,
            batch.targets,
            self._temperature,
            batch.kept_token_ids,
            batch.packing,
            False,  # entropies, which nobody asks for, need no gradient
            self._of_all_kept,
        )[0]
