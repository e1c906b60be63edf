"""The reward model in training, on one rank: scores of whole answers, learnt from rankings."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from rlhf_ray.algorithms.rewards.task_rewards import RewardMoments, reward_moments
from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.checkpoint_files.facts import load_facts
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_folder import classifier_names, new_classifier
from rlhf_ray.models.reward_normalization import normalization_of, write_normalization
from rlhf_ray.models.saving.write import noted
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.objectives.rankings import (
    RankingScores,
    mean_calibration_error,
    ranking_objective,
    scores_of,
)
from rlhf_ray.plain_files import load_plain
from rlhf_ray.records.files import load_preference_samples
from rlhf_ray.records.preferences import PreferenceSamples
from rlhf_ray.training.engine.meeting import Meeting
from rlhf_ray.training.engine.ranks import rank
from rlhf_ray.training.roles.base import RoleArguments
from rlhf_ray.training.roles.scalar_model import ScalarRole
from rlhf_ray.training.train_step import Part, run_evaluation, run_update
from rlhf_ray.training.weights import named as weights
from rlhf_ray.training.weights.lora import Adapter
from rlhf_ray.training.weights.lora_folder import FOLDER as ADAPTER
from rlhf_ray.training.weights.lora_folder import write_adapter

# The normalisation of a saved model is measured on the answers of about this many latest rankings.
_NUM_MEASURED = 256


class RewardModelTrainer(ScalarRole):
    """Learns from rankings which answers are better.

    One object per rank. All methods are called on all ranks together.

    Args:
        centring_coefficient: see `reward_model_loss`.
        role: see `TrainedRole`.
    """

    def __init__(self, *, centring_coefficient: float, **role: Unpack[RoleArguments]) -> None:
        super().__init__(**role)
        self._centring_coefficient = centring_coefficient
        # By optimiser step. After a resume on fewer ranks, one has the samples of several.
        self._latest: deque[tuple[PreferenceSamples, ...]] = deque()

    def start(
        self,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        *,
        meeting: Meeting | None = None,
    ) -> None:
        """See `TrainedRole.start`.

        Raises:
            RequestError: transformers has no sequence classifier for the model's architecture.
        """
        self._tokenizer = load_tokenizer(self._model_settings)
        super().start(rank, world_size, master_addr, master_port, meeting=meeting)
        names = weights.weight_shapes(self._model)
        self._classifier = new_classifier(self._model, names, self._tokenizer)
        if self._classifier.config.pad_token_id is not None:
            padding = self._classifier.config.pad_token_id
            self._tokenizer.pad_token = self._tokenizer.convert_ids_to_tokens(padding)
        # The placeholder after an answer takes part in the plan, but never in a forward pass.
        self._layout = replace(self._layout, max_tokens=self._layout.max_tokens + 1)

    def update(self, steps: Sequence[PreferenceSamples]) -> dict[str, float]:
        """Take an optimiser step for each entry; all ranks have the same number.

        Returns:
            Metrics over all ranks: means over the rankings, then over optimiser steps.

        Raises:
            RuntimeError: the gradient is not finite.
        """
        parts = [[self._part(samples, "train")] for samples in steps]
        result = run_update(self._engine, parts, self._layout)
        for samples in steps:
            self._remember(samples)
        metrics, _ = mean_calibration_error(result.means)
        tokens = metrics.pop("train/tokens")
        return {
            **metrics,
            "train/grad_norm": result.grad_norm,
            "train/learning_rate": result.learning_rate,
            "tokens/trained": tokens * len(steps),
        }

    def evaluate(self, samples: PreferenceSamples) -> dict[str, float]:
        """Loss, accuracy, margin and calibration on the rankings of all ranks."""
        means = run_evaluation(self._part(samples, "eval"), self._layout)
        metrics, error = mean_calibration_error(means)
        del metrics["eval/tokens"]
        return {**metrics, "eval/calibration_error": error}

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights by their names in a sequence classifier; see `weights.named_weights`."""
        names = classifier_names(self._classifier)
        for name, tensor in weights.named_weights(self._engine, self._model):
            yield names(name), tensor

    def save_model(self, folder: Path) -> None:
        """Write a sequence classifier, tokenizer and normalisation; all ranks together."""
        names = classifier_names(self._classifier)
        specs = weights.weight_specs(self._model)
        weights.write_model(
            self.named_weights(),
            [(names(name), dtype, shape) for name, dtype, shape in specs],
            self._classifier,
            self._tokenizer,
            folder,
            max_file_bytes=self._model_settings.max_file_bytes,
        )
        if self._adapter is not None:
            self._write_adapter(self._adapter, folder / ADAPTER)
        moments = self._moments()
        if rank() == 0:
            with noted(folder, "the normalisation of the scores"):
                write_normalization(folder, normalization_of(moments))
        torch.distributed.barrier()

    def snapshot(self, *, copies: bool = True) -> Callable[[Path], None]:
        """See `TrainedRole.snapshot`; includes the answers of the normalisation."""
        write_role = super().snapshot(copies=copies)
        # Samples are not changed after their step, so that there is nothing to copy.
        steps = [[_fields(samples) for samples in step] for step in self._latest]
        name = _latest_name(rank())

        def write(folder: Path) -> None:
            write_role(folder)
            torch.save(steps, folder / name)

        return write

    def load_checkpoint(self, folder: Path) -> None:
        super().load_checkpoint(folder)
        facts, size = load_facts(folder), self._settings.ranks_per_sample
        # Ranks of a group have the same samples: one of each group is read.
        writers = range(0, facts.world_size, facts.ranks_per_sample)
        saved = [_load_steps(folder / _latest_name(writer)) for writer in writers]
        groups = torch.distributed.get_world_size() // size
        self._latest = deque(divided(saved, rank() // size, groups))

    def _write_adapter(self, adapter: Adapter, folder: Path) -> None:
        names = classifier_names(self._classifier)
        head = self._model.head.weight
        with self._engine.gathered([head]):
            write_adapter(
                self._engine,
                adapter,
                folder,
                base=self._model_settings.path,
                names=names,
                head=[(names("head.weight"), head)],
            )

    def _part(self, samples: PreferenceSamples, name: str) -> Part[PreferenceSamples]:
        def compute(samples: PreferenceSamples, batch: MicroBatch) -> Objective:
            return ranking_objective(
                self._scores(samples, batch),
                samples,
                centring_coefficient=self._centring_coefficient,
                name=name,
            )

        return Part(samples=samples, compute=compute)

    def _scores(self, samples: PreferenceSamples, batch: MicroBatch) -> RankingScores:
        return scores_of(self._forward(batch)[: batch.num_targets], samples, batch)

    def _remember(self, samples: PreferenceSamples) -> None:
        """Keep the latest rankings for the normalisation.

        Counted over all ranks, so that the same rankings are kept on any number of ranks.
        """
        self._latest.append((samples,))
        num_later = (
            sum(step[0].num_prompts for step in self._latest) - self._latest[0][0].num_prompts
        )
        while num_later >= _NUM_MEASURED:
            self._latest.popleft()
            num_later -= self._latest[0][0].num_prompts

    def _moments(self) -> RewardMoments | None:
        """Moments of the scores of the latest answers of all ranks; None without answers.

        The scores themselves are gathered, a few thousand numbers: a sum of squares would lose the
        deviation where the mean is large.
        """
        own: list[Tensor] = []

        def compute(samples: PreferenceSamples, batch: MicroBatch) -> Objective:
            values = self._scores(samples, batch).values.detach().double()
            own.append(values)
            return Objective(loss=values.sum(), sums={"0": values.sum()}, maxima={})

        for samples in (samples for step in self._latest for samples in step):
            run_evaluation(Part(samples=samples, compute=compute), self._layout)
        found: list[list[float]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(found, torch.cat(own).tolist() if own else [])
        scores = [score for of_rank in found for score in of_rank]
        return reward_moments(scores) if scores else None


def divided(
    saved: Sequence[Sequence[tuple[PreferenceSamples, ...]]], place: int, num_places: int
) -> list[tuple[PreferenceSamples, ...]]:
    """The samples of one of several places, by optimiser step, of those that others have saved.

    Every place gets as many records of samples as the others, with as many micro-batches: one that
    is left without samples gets empty ones.

    Args:
        saved: by place that saved, then by step.
    """
    own = list(saved[place::num_places])
    missing = -(-len(saved) // num_places) - len(own)
    own += [[tuple(map(_emptied, step)) for step in saved[0]]] * missing
    steps = zip(*own, strict=True)
    return [tuple(samples for part in parts for samples in part) for parts in steps]


def _emptied(samples: PreferenceSamples) -> PreferenceSamples:
    """The same number of micro-batches, without a sample."""
    tensors = {
        name: value[:0] for name, value in _fields(samples).items() if isinstance(value, Tensor)
    }
    nothing = ((),) * len(samples.micro_batches)
    return dataclasses.replace(samples, **tensors, micro_batches=nothing)


def _load_steps(path: Path) -> list[tuple[PreferenceSamples, ...]]:
    """The samples of a rank by step; a release before kept one record a step."""
    return [
        tuple(map(load_preference_samples, step if isinstance(step, list) else [step]))
        for step in load_plain(path)
    ]


def _latest_name(rank: int) -> str:
    return f"latest_answers_{rank}.pt"


def _fields(samples: PreferenceSamples) -> dict[str, object]:
    return {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
