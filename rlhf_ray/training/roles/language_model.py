"""Base class of roles that train a language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.training.engine.deepspeed_engine import TrainEngine
from rlhf_ray.training.forward.modules import PolicyForward, disable_dropout
from rlhf_ray.training.forward.scoring import score_tokens
from rlhf_ray.training.forward.trial import try_policy
from rlhf_ray.training.roles.base import TrainedRole
from rlhf_ray.training.roles.row_trials import StartedModel, try_rows
from rlhf_ray.training.roles.start_models import trained_policy
from rlhf_ray.training.weights import named as weights
from rlhf_ray.training.weights.ema_policy import make_engine
from rlhf_ray.training.weights.lora_folder import FOLDER as ADAPTER
from rlhf_ray.training.weights.lora_folder import write_adapter
from rlhf_ray.training.weights.trainable import freeze_or_adapt_policy


class LanguageModelRole(TrainedRole):
    """A causal language model in training, on one rank; subclasses define its loss."""

    def _build(self) -> TrainEngine:
        self._tokenizer = load_tokenizer(self._model_settings)
        self._model, fill = trained_policy(self._model_settings, self._settings, seed=self._seed)
        self._adapter = freeze_or_adapt_policy(self._model, self._settings, seed=self._seed)
        if self._settings.gradient_checkpointing:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        module = PolicyForward(self._model, kernel=self._model_settings.head_kernel)
        disable_dropout(module)
        self._layout = try_policy(self._model, self._model_settings, self._settings)
        total_steps = self._total_optimizer_steps
        return make_engine(module, self._settings, total_steps=total_steps, fill=fill)

    def _try_rows(self) -> None:
        started = StartedModel(
            module=self._engine.module,
            decoder=self._model.get_decoder(),
            attention=self._model_settings.attention,
            predict=self._predict_at(1.0),
        )
        self._layout, self._sequences = try_rows(
            started, self._layout, self._settings, timeout_s=self._timeout_s
        )

    def score_sequences(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Log-probabilities, at temperature 1, of every token but the first of each sequence.

        Over the whole vocabulary, whatever the support of the sampling distribution. All ranks call
        it together with the same sequences and get the same result.
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
            None,
            layout=replace(self._layout, max_tokens=max(self._layout.max_tokens, longest)),
        )
        return [part[1:].tolist() for part in values.split(lengths.tolist())]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights by their Hugging Face names, in a fixed order; see `weights.named_weights`."""
        return weights.named_weights(self._engine, self._model)

    def save_model(self, folder: Path) -> None:
        """Write the policy in Hugging Face format, with its tokenizer; all ranks together.

        An adapter is merged into the model, and also written separately, to a folder inside.
        """
        self._write_model(self.named_weights(), folder)
        if self._adapter is not None:
            path = self._model_settings.path
            write_adapter(self._engine, self._adapter, folder / ADAPTER, base=path)

    def _write_model(self, named: Iterator[tuple[str, Tensor]], folder: Path) -> None:
        weights.write_model(
            named,
            weights.weight_specs(self._model),
            self._model,
            self._tokenizer,
            folder,
            max_file_bytes=self._model_settings.max_file_bytes,
        )

    def _forward(
        self,
        batch: MicroBatch,
        temperature: float,
        *,
        entropy_gradient: bool = False,
        over_support: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the targets; see `PolicyForward`."""
        return self._engine.forward(
            batch.input_ids,
            batch.hidden_index,
            batch.targets,
            temperature,
            batch.support_token_ids,
            batch.packing,
            entropy_gradient,
            over_support,
        )

    def _predict_at(self, temperature: float):
        return lambda batch: self._forward(batch, temperature)[0]
