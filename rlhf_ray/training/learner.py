"""The learner: the policy in training, on one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.kept_tokens import whole_vocabulary
from rlhf_ray.models.loading import load_policy, load_tokenizer
from rlhf_ray.records import Coefficients, Experience, RolloutGroup, TokenValues
from rlhf_ray.training import weights
from rlhf_ray.training.engine import TrainEngine, start_process
from rlhf_ray.training.forward import PolicyForward, disable_dropout
from rlhf_ray.training.layout import MicroBatch
from rlhf_ray.training.objective import Objective, Predicted, policy_objective
from rlhf_ray.training.role import TrainedRole
from rlhf_ray.training.row_layout import row_layout
from rlhf_ray.training.scoring import score_groups, score_tokens
from rlhf_ray.training.token_logprobs import of_targets
from rlhf_ray.training.train_step import Part, run_update


class Learner(TrainedRole):
    """Trains the policy, scores with it, and gives its weights away.

    One object per rank. Methods that say so are called on all ranks together.

    Args:
        model: where weights and tokenizer come from.
        max_response_tokens: of the longest answer, for losses over a constant length.
        temperature: of the sampling; log-probabilities of `score` and `update` are at it.
        total_optimizer_steps: of the whole run, for the learning rate.
        timeout_s: how long a collective operation waits for the other ranks.
    """

    def __init__(
        self,
        *,
        training: TrainingConfig,
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        max_response_tokens: int,
        temperature: float,
        total_optimizer_steps: int,
        seed: int,
        timeout_s: float,
    ) -> None:
        super().__init__(training)
        self._algorithm = algorithm
        self._model_settings = model
        self._max_response_tokens = max_response_tokens
        self._temperature = temperature
        self._total_optimizer_steps = total_optimizer_steps
        self._seed = seed
        self._timeout_s = timeout_s

    def start(self, rank: int, world_size: int, master_addr: str, master_port: int) -> None:
        """Join the other ranks, load the model, build the engine; all ranks together.

        Raises:
            ValueError: the model cannot be loaded, or has a head that is not understood.
        """
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
        self._tokenizer = load_tokenizer(self._model_settings)
        self._model = load_policy(self._model_settings, dtype=self._settings.dtype)
        if self._settings.gradient_checkpointing:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        module = PolicyForward(self._model, kernel=self._model_settings.head_kernel)
        disable_dropout(module)
        module.check_head()
        attention = self._model_settings.attention
        self._layout = row_layout(self._model.get_decoder(), self._settings, attention)
        self._started = TrainEngine(module, self._settings, total_steps=self._total_optimizer_steps)

    def score(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Log-probabilities of the sampled tokens of this rank's groups; all ranks together."""
        return score_groups(self._predict_at(self._temperature), groups, layout=self._layout)

    def score_sequences(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Log-probabilities, at temperature 1, of every token but the first of each sequence.

        Over the whole vocabulary, whatever is sampled from. All ranks together, with the same
        sequences; the result is the same on all of them.
        """
        token_ids = torch.tensor([token for tokens in sequences for token in tokens])
        lengths = torch.tensor([len(tokens) for tokens in sequences])
        mask = torch.ones_like(token_ids, dtype=torch.bool)
        mask[lengths.cumsum(0) - lengths] = False
        longest = int(lengths.max())
        values = score_tokens(
            self._predict_at(1.0),
            token_ids,
            lengths,
            mask,
            whole_vocabulary(token_ids.shape[0]),
            layout=replace(self._layout, max_tokens=max(self._layout.max_tokens, longest)),
        )
        return [part[1:].tolist() for part in values.split(lengths.tolist())]

    def update(
        self, experiences: Sequence[Experience], *, coefficients: Coefficients
    ) -> dict[str, float]:
        """One optimiser step for each experience; all ranks together, with as many.

        Args:
            coefficients: those in force; that of the KL penalty has no effect here where the
                penalty is in the reward.

        Returns:
            Metrics over all ranks: means over the sampled tokens, and over optimiser steps.
            The gap to the generator is that of the first one, before the weights change.

        Raises:
            RuntimeError: the gradient is not finite.
        """
        if self._algorithm.kl_placement == "reward":
            coefficients = dataclasses.replace(coefficients, kl=0.0)

        def compute(number: int, experience: Experience, batch: MicroBatch) -> Objective:
            predicted = self._predict(batch, coefficients)
            return policy_objective(
                predicted,
                experience,
                batch.token_index,
                algorithm=self._algorithm,
                coefficients=coefficients,
                constant_length=self._max_response_tokens,
                compare_with_generator=number == 0,
            )

        steps = [
            [Part(samples=experience, compute=partial(compute, number))]
            for number, experience in enumerate(experiences)
        ]
        result = run_update(self._engine, steps, self._layout)
        return {
            **result.means,
            **result.maxima,
            "policy/grad_norm": result.grad_norm,
            "policy/learning_rate": result.learning_rate,
            "tokens/trained": float(sum(e.num_loss_tokens for e in experiences)),
        }

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights by their Hugging Face names, in a fixed order; see `weights.named_weights`."""
        return weights.named_weights(self._engine, self._model)

    def save_model(self, folder: Path) -> None:
        """Write the policy in Hugging Face format, with its tokenizer; all ranks together."""
        weights.save_model(self._engine, self._model, self._tokenizer, folder)

    def _predict(self, batch: MicroBatch, coefficients: Coefficients) -> Predicted:
        """What the loss needs of the policy on one micro-batch, with gradient."""
        whole = self._algorithm.kl_estimator == "full" and coefficients.kl > 0
        logprobs, entropy = self._forward(
            batch,
            self._temperature,
            entropy_gradient=coefficients.entropy > 0,
            of_all_kept=whole,
        )
        count = batch.num_targets
        if not whole:
            return Predicted(logprobs=logprobs[:count], entropy=entropy[:count])
        sampled = of_targets(logprobs, batch.targets, batch.kept_token_ids)
        return Predicted(
            logprobs=sampled[:count], entropy=entropy[:count], kept_logprobs=logprobs[:count]
        )

    def _forward(
        self,
        batch: MicroBatch,
        temperature: float,
        *,
        entropy_gradient: bool = False,
        of_all_kept: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the targets; see `PolicyForward`."""
        return self._engine.forward(
            batch.input_ids,
            batch.hidden_index,
            batch.targets,
            temperature,
            batch.kept_token_ids,
            batch.packing,
            entropy_gradient,
            of_all_kept,
        )

    def _predict_at(self, temperature: float):
        return lambda batch: self._forward(batch, temperature)[0]
