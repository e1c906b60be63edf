"""The reward model as a scorer of groups for reinforcement learning, on one rank."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig, ScorerPart
from rlhf_ray.data.chat_fields import Message, Tool
from rlhf_ray.data.tokens.turn_ends import inner_turn_tokens
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_source import reward_model_source
from rlhf_ray.records import RolloutGroup
from rlhf_ray.rewards.outcomes import Outcome
from rlhf_ray.training.engine.deepspeed_engine import FrozenEngine
from rlhf_ray.training.engine.meeting import Meeting, limit_collectives
from rlhf_ray.training.engine.process import start_process
from rlhf_ray.training.engine.ranks import reduce_over_ranks, training_device
from rlhf_ray.training.forward.modules import ValueForward, disable_dropout
from rlhf_ray.training.forward.trial import try_backbone
from rlhf_ray.training.roles.answer_scores import AnswerScores, Share, limits_of
from rlhf_ray.training.roles.base import FrozenRole
from rlhf_ray.training.roles.row_trials import StartedModel, try_rows
from rlhf_ray.training.roles.start_models import scalar_head


class RewardScorer(FrozenRole):
    """A `GroupScorer` with a frozen reward model.

    At ZeRO stage 0 every rank holds a whole model and is a separate process group. At stage 3 all
    ranks hold one model together: each scores its share of the samples of every group; with
    sequence parallelism, each group of ranks does.

    Args:
        reward_model: settings as completed by `stages`: with mean and standard deviation if scores
            are normalised, and `foreign_tokens` "text" only if the tokenizer is not the policy's.
        model: of the policy: its tokenizer, where both have the same, and how models are loaded.
        timeout_s: longest wait of a collective operation for the other ranks.
    """

    def __init__(
        self, *, reward_model: ModelRewardConfig, model: ModelConfig, seed: int, timeout_s: float
    ) -> None:
        self._settings = reward_model
        self._policy_settings = model
        self._model_settings = reward_model_source(reward_model, model)
        self._seed = seed
        self._timeout_s = timeout_s

    def start(
        self,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        *,
        meeting: Meeting | None = None,
    ) -> None:
        """Join the other ranks of this model and load it."""
        settings = self._settings
        start_process(
            rank,
            world_size,
            master_addr,
            master_port,
            timeout_s=self._timeout_s,
            cpu_threads=settings.cpu_threads,
            seed=self._seed,
            on_gpu=settings.num_gpus > 0,
            meeting=meeting,
        )
        model = scalar_head(self._model_settings, settings)
        limits = limits_of(model)
        module = ValueForward(model)
        disable_dropout(module)
        attention = self._model_settings.attention
        layout = try_backbone(model, self._model_settings, settings)
        is_foreign = settings.foreign_tokens == "text"
        # Sampled ids are the policy's, and its folder is sure to have the tokenizer.
        tokenizer = load_tokenizer(self._model_settings if is_foreign else self._policy_settings)
        self._started = FrozenEngine(module, settings)
        started = StartedModel(
            module=module, decoder=model.backbone, attention=attention, predict=self._predict
        )
        layout, self._sequences = try_rows(started, layout, settings, timeout_s=self._timeout_s)
        group_size = layout.ranks_per_sample
        self._scores = AnswerScores(
            settings,
            predict=self._predict,
            layout=layout,
            limits=limits,
            tokenizer=tokenizer if is_foreign else None,
            turn_tokens={} if is_foreign else inner_turn_tokens(tokenizer),
            share=Share(
                rank=rank // group_size,
                num_ranks=world_size // group_size,
                gather=lambda values: _sum_over_ranks(values) / group_size,
            ),
        )
        limit_collectives(self._timeout_s)

    def start_alone(self) -> None:
        """Start as the only rank, on this machine."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.start(0, 1, "127.0.0.1", port)

    @property
    def part(self) -> ScorerPart:
        return self._scores.part

    @property
    def max_tokens(self) -> int:
        return self._scores.max_tokens

    def score(self, group: RolloutGroup) -> Sequence[Outcome]:
        """See `AnswerScores.score`."""
        return self._scores.score(group)

    def score_texts(
        self,
        messages: Sequence[Message],
        answers: Sequence[str],
        finish_reasons: Sequence[str],
        *,
        tools: Sequence[Tool] = (),
    ) -> Sequence[Outcome]:
        """See `AnswerScores.score_texts`; needs `foreign_tokens` "text"."""
        return self._scores.score_texts(messages, answers, finish_reasons, tools=tools)

    def _predict(self, batch: MicroBatch) -> Tensor:
        assert self._started is not None, "call start() first"
        return self._started.forward(batch.input_ids, batch.hidden_index, batch.packing)


def _sum_over_ranks(values: Tensor) -> Tensor:
    return reduce_over_ranks(values.to(training_device())).cpu()
