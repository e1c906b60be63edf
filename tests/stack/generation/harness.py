"""A started engine with its event loop, and the learner's side of it in plain torch."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.engine import GenerationEngine
from rlhf_ray.publish.bucket import pack_buckets
from rlhf_ray.publish.gate import check_fidelity, compare, make_probe
from rlhf_ray.records import Prompt, RolloutGroup

MAX_SEQUENCE_TOKENS = 1000
# Far beyond what the longest request takes on a busy machine.
REQUEST_TIMEOUT_S = 60.0
GREEDY_FROM = 1000
# The tiny models have 0.3 MB: five buckets or so.
BUCKET_BYTES = 64 * 1024
VOCABULARY = 300
# Of a rank that vLLM has to pad.
LORA = LoraConfig(
    r=6,
    alpha=9,
    target_modules=[
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ],
)
PROBE = make_probe([], num_sequences=4, num_tokens=40, vocab_size=VOCABULARY, seed=0)


def generation_config(**settings: Any) -> GenerationConfig:
    base: dict[str, Any] = {
        "dtype": "float32",
        "max_response_tokens": 24,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "kv_cache_gib": 0.25,
        "cpu_threads": 1,
        "extra_engine_args": {
            "worker_extension_cls": "tests.stack.generation.worker_extension.BreakableWorker"
        },
    }
    return GenerationConfig(**(base | settings))


class StartedEngine:
    """An engine and the loop that it lives in; the loop runs while `run` does."""

    def __init__(self, folder: Path, *, lora: LoraConfig | None = None, **settings: Any) -> None:
        self.settings = generation_config(**settings)
        self.engine = GenerationEngine(
            generation=self.settings,
            model=ModelConfig(path=str(folder)),
            engine_index=0,
            max_sequence_tokens=MAX_SEQUENCE_TOKENS,
            greedy_from=GREEDY_FROM,
            request_timeout_s=REQUEST_TIMEOUT_S,
            with_text_ends=True,
            lora=lora,
        )
        self._loop = asyncio.new_event_loop()
        environment = dict(os.environ)
        try:
            self.run(self.engine.start())
        finally:
            # An engine has a process of its own and leaves its variables there; tests share one.
            os.environ.clear()
            os.environ.update(environment)
        self.version = 0

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(coroutine)

    def close(self) -> None:
        self.run(self.engine.close())
        self._loop.close()

    @contextmanager
    def changed(self, **settings: Any) -> Iterator[None]:
        """Sampling settings for a while: the engine reads them for every request."""
        before = {name: self.settings.__dict__[name] for name in settings}
        self.settings.__dict__.update(settings)
        try:
            yield
        finally:
            self.settings.__dict__.update(before)

    @contextmanager
    def time_limit(self, seconds: float) -> Iterator[None]:
        """Another time limit of requests for a while."""
        told = (self.engine, self.engine._requests)
        try:
            for part in told:
                part._timeout_s = seconds
            yield
        finally:
            for part in told:
                part._timeout_s = REQUEST_TIMEOUT_S

    def generate(self, *prompts: Prompt, num_samples: int = 4) -> list[RolloutGroup]:
        """A group for each prompt, all started in one step; fails if a sample did."""

        async def all_groups() -> list[Any]:
            indices, together = tuple(range(num_samples)), num_samples * len(prompts)
            return await asyncio.gather(
                *(self.engine.generate(prompt, indices, together=together) for prompt in prompts)
            )

        results = self.run(all_groups())
        assert [failures for _, failures in results] == [()] * len(prompts)
        return [group for group, _ in results]

    async def update(self, model: PreTrainedModel, *, leave_out: int | None = None) -> None:
        """Publish the model's weights; without one of the buckets, if told so."""
        await self.publish(named_weights(model), BUCKET_BYTES, leave_out=leave_out)

    async def publish(
        self,
        named: Iterable[tuple[str, Tensor]],
        bucket_bytes: int,
        *,
        leave_out: int | None = None,
    ) -> None:
        """Publish these weights, in several buckets."""
        self.version += 1
        await self.engine.begin_update()
        buckets = list(pack_buckets(named, bucket_bytes))
        assert len(buckets) > 3
        for number, bucket in enumerate(buckets):
            if number != leave_out:
                await self.engine.load_bucket(bucket)
        await self.engine.finish_update(self.version)

    def prove(self, model: PreTrainedModel, *, tolerance: float = 1e-4) -> float:
        """The fidelity gate against `model`; returns the gap, raises FidelityError."""
        sequences = list(PROBE.sequences)
        scored = self.run(self.engine.score_sequences(sequences))
        expected = [token_logprobs(model, tokens).tolist() for tokens in sequences]
        gap = compare(scored, expected)
        versions = [self.run(self.engine.weight_version())]
        check_fidelity(
            expected_version=self.version, versions=versions, gaps=[gap], tolerance=tolerance
        )
        return gap


def load_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and weights as the learner yields them: of tied tensors the first alone."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


@torch.no_grad()
def token_logits(model: PreTrainedModel, tokens: tuple[int, ...]) -> Tensor:
    """Logits [T - 1, V] that predict every token but the first."""
    return model(torch.tensor([tokens])).logits[0, :-1]


def token_logprobs(
    model: PreTrainedModel, tokens: tuple[int, ...], temperature: float = 1.0
) -> Tensor:
    """Log-probability [T - 1] of every token but the first, as the learner computes it."""
    logprobs = (token_logits(model, tokens) / temperature).log_softmax(dim=-1)
    return logprobs.gather(1, torch.tensor(tokens)[1:, None])[:, 0]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample of a group, unpacked; logprobs, versions and mask belong to tokens[1:]."""

    tokens: tuple[int, ...]
    mask: Tensor
    logprobs: Tensor
    versions: Tensor
    text: str
    finish_reason: str

    @property
    def response(self) -> list[int]:
        return torch.tensor(self.tokens)[1:][self.mask].tolist()


def samples_of(group: RolloutGroup) -> list[Sample]:
    lengths = group.lengths.tolist()
    parts = zip(
        group.token_ids.split(lengths),
        group.loss_mask.split(lengths),
        group.generator_logprobs.split(lengths),
        group.weight_versions.split(lengths),
        group.responses,
        group.finish_reasons,
        strict=True,
    )
    return [
        Sample(tuple(tokens.tolist()), mask[1:], logprobs[1:], versions[1:], text, reason)
        for tokens, mask, logprobs, versions, text, reason in parts
    ]


def make_prompt(number: int, *, num_tokens: int = 8) -> Prompt:
    tokens = tuple(3 + (31 * number + 7 * place) % (VOCABULARY - 3) for place in range(num_tokens))
    return Prompt(
        prompt_id=f"e0-r{number}",
        stream_index=number,
        text="",
        token_ids=tokens,
        answer=None,
        source="test",
        seed=1000 + number,
        columns={},
    )
