"""Engines, policy, critic and builder of the bandit. See `bandit`."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.algorithms.ragged import count_by_segment, segment_ids
from rlhf_ray.batching.layout import MicroBatch, lay_out
from rlhf_ray.calls import Call
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.experience.builder import ExperienceBuilder
from rlhf_ray.objectives.policy import Objective, Predicted, policy_objective, value_objective
from rlhf_ray.publish.base import POLICY
from rlhf_ray.records import (
    Coefficients,
    Experience,
    GroupSummary,
    Prompt,
    RolloutGroup,
    TokenValues,
)
from rlhf_ray.testing.fake_roles import FakeBuilder, FakeCritic, FakeLearner
from rlhf_ray.testing.fakes import FakeGenerators, done

# The right first and second token of every prompt.
RIGHT = ((1, 2), (3, 1), (2, 4))
NUM_POSITIONS, VOCABULARY, END, ENVIRONMENT = 3, 5, 0, 9
FIRST_PROMPT_TOKEN = 20
LEARNING_RATE = 0.1


class Table:
    """A trained table of numbers by prompt and position: [prompts x positions, width]."""

    def __init__(self, width: int) -> None:
        shape = (len(RIGHT) * NUM_POSITIONS, width)
        self.weights = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        # Adam with a short memory: before the first batch a moving baseline is 0, and the gradient
        # is large.
        self._optimizer = torch.optim.Adam([self.weights], lr=LEARNING_RATE, betas=(0.9, 0.9))

    def train(
        self, experience: Experience, objective: Callable[[Tensor, MicroBatch], Objective]
    ) -> None:
        """One optimiser step; `objective` gets the rows [M, width] of the predicted tokens."""
        self._optimizer.zero_grad()
        tokens = (experience.token_ids, experience.lengths, experience.loss_mask)
        rows = states(*tokens)
        for samples in experience.micro_batches:
            batch = lay_out(*tokens, experience.support_token_ids, samples)
            objective(self.weights[rows[batch.token_index]], batch).loss.backward()
        self._optimizer.step()


def states(token_ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """The table's row [N] for every sampled token; 0 elsewhere."""
    counts = count_by_segment(mask, lengths)
    sample = segment_ids(lengths)
    place = mask.long().cumsum(0) - 1 - (counts.cumsum(0) - counts)[sample]
    prompt = (token_ids[lengths.cumsum(0) - lengths] - FIRST_PROMPT_TOKEN)[sample]
    return torch.where(mask, prompt * NUM_POSITIONS + place, 0)


def log_probabilities(weights: Tensor, group: RolloutGroup) -> Tensor:
    """Log-probabilities of the sampled tokens of a group [N] float32; 0 elsewhere."""
    rows = states(group.token_ids, group.lengths, group.loss_mask)
    table = weights.detach().log_softmax(dim=1)
    chosen = table[rows, torch.where(group.loss_mask, group.token_ids, 0)]
    return torch.where(group.loss_mask, chosen, 0.0).float()


class BanditPrompts:
    """The prompts in turn, without end."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._position = 0

    def next(self) -> Prompt:
        index, self._position = self._position, self._position + 1
        return Prompt(
            prompt_id=f"e{index // len(RIGHT)}-r{index % len(RIGHT)}",
            stream_index=index,
            text="",
            token_ids=(FIRST_PROMPT_TOKEN + index % len(RIGHT),),
            answer=None,
            source="bandit",
            seed=random.Random(f"{self._seed}, {index}").getrandbits(32),
            columns={},
        )

    def record(self, outcome: GroupSummary) -> None:
        """No-op: the order does not depend on outcomes."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = state["position"]


class BanditEngines(FakeGenerators):
    """One engine with a copy of the policy's table, as old as its last publish."""

    def __init__(self, weights: Tensor, *, greedy_from: int) -> None:
        super().__init__()
        self._weights = weights.detach().clone()
        self._greedy_from = greedy_from

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        samples = [self._sample(prompt, index) for index in sample_indices]
        sampled = [[False, True, False, True, True][: len(tokens)] for tokens in samples]
        mask = torch.tensor([keep for row in sampled for keep in row])
        group = RolloutGroup(
            prompt=prompt,
            sample_indices=sample_indices,
            token_ids=torch.tensor([token for tokens in samples for token in tokens]),
            lengths=torch.tensor([len(tokens) for tokens in samples]),
            loss_mask=mask,
            generator_logprobs=torch.zeros(mask.shape[0]),
            support_token_ids=None,
            weight_versions=torch.where(mask, self.version, -1),
            responses=("",) * len(samples),
            finish_reasons=("stop",) * len(samples),
            rewards=torch.zeros(0, dtype=torch.float64),
            reward_parts={},
            failures=(),
        )
        logprobs = log_probabilities(self._weights, group)
        group = dataclasses.replace(group, generator_logprobs=logprobs)
        return done("generator", engine, signal=(), payload=group)

    def _sample(self, prompt: Prompt, index: int) -> list[int]:
        """The prompt, a token, the environment's token, and up to two more tokens."""
        generator = torch.Generator().manual_seed(prompt.seed + index)
        first = (prompt.token_ids[0] - FIRST_PROMPT_TOKEN) * NUM_POSITIONS
        probabilities = self._weights[first : first + NUM_POSITIONS].softmax(dim=1)
        drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        tokens = (drawn if index < self._greedy_from else probabilities.argmax(dim=1)).tolist()
        if tokens[0] == END:
            return [*prompt.token_ids, END]
        rest = tokens[1:2] if tokens[1] == END else tokens[1:]
        return [*prompt.token_ids, tokens[0], ENVIRONMENT, *rest]

    def load_bucket(self, bucket: Tensor) -> list[Call]:
        self._weights = bucket
        return [done("generator", 0)]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [done("generator", 0, signal=[score_sequence(self._weights, s) for s in sequences])]


def score_sequence(weights: Tensor, tokens: tuple[int, ...]) -> list[float]:
    """Log-probabilities of the tokens of a probe, all taken at the first place."""
    return weights.detach().log_softmax(dim=1)[0, list(tokens)].tolist()


class BanditPolicy(FakeLearner):
    """The learner: the real objective on a table of logits."""

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self.table = Table(VOCABULARY)
        self._algorithm = algorithm

    def score(self, groups: Sequence[RolloutGroup], num_tokens: Sequence[int]) -> list[Call]:
        return [done("learner", 0, payload=score_groups(self.table.weights, groups))]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        scored = [score_sequence(self.table.weights, tokens) for tokens in sequences]
        return [done("learner", 0, signal=scored)]

    def weight_shapes(self) -> Call:
        return done("learner", 0, signal={"table": tuple(self.table.weights.shape)})

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        return done("learner", 0, signal=[self.table.weights.detach().clone()]), []

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        if self._algorithm.kl_placement == "reward":
            coefficients = dataclasses.replace(coefficients, kl=0.0)
        entropies = []
        for experience in experiences[0]:

            def objective(rows: Tensor, batch: MicroBatch, now: Experience = experience):
                logprobs = rows.log_softmax(dim=1)
                entropy = -(logprobs.exp() * logprobs).sum(dim=1)
                entropies.append(float(entropy.detach().mean()))
                sampled = logprobs.gather(1, batch.targets[:, None])[:, 0]
                return policy_objective(
                    Predicted(logprobs=sampled, entropy=entropy),
                    now,
                    batch.token_index,
                    algorithm=self._algorithm,
                    coefficients=coefficients,
                    constant_length=NUM_POSITIONS,
                    compare_with_generator=False,
                )

            self.table.train(experience, objective)
        return [done("learner", 0, signal={"policy/entropy": sum(entropies) / len(entropies)})]


class BanditCritic(FakeCritic):
    """The real value loss on a table of values."""

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self.table = Table(1)
        self._algorithm = algorithm

    def score(self, groups: Sequence[RolloutGroup], num_tokens: Sequence[int]) -> list[Call]:
        values, table = [], self.table.weights.detach()[:, 0]
        for group in groups:
            rows = table[states(group.token_ids, group.lengths, group.loss_mask)]
            kept = torch.where(group.loss_mask, rows, 0.0).float()
            values.append(TokenValues(prompt_id=group.prompt.prompt_id, values=kept))
        return [done("critic", 0, payload=values)]

    def update(self, experiences: Sequence[tuple[Experience, ...]]) -> list[Call]:
        for experience in experiences[0]:

            def objective(rows: Tensor, batch: MicroBatch, now: Experience = experience):
                return value_objective(
                    rows[:, 0], now, batch.token_index, algorithm=self._algorithm
                )

            self.table.train(experience, objective)
        return [done("critic", 0, signal={})]


class BanditBuilder(FakeBuilder):
    """The real builder, in this process."""

    def __init__(self, builder: ExperienceBuilder) -> None:
        super().__init__()
        self._builder = builder

    def build(self, **parts: Any) -> Call:
        batch = self._builder.build(**parts)
        return done("builder", 0, signal=batch.metrics, payload=(batch.learner, batch.critic))


def score_groups(weights: Tensor, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
    return [
        TokenValues(prompt_id=group.prompt.prompt_id, values=log_probabilities(weights, group))
        for group in groups
    ]
