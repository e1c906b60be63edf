"""An adapter in a running engine, published by itself, and the gate that proves it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_ray.publish.gate import FidelityError
from rlhf_ray.training.weights.lora import add_adapter
from tests.stack.generation.harness import (
    LORA,
    load_model,
    make_prompt,
    samples_of,
    token_logprobs,
)

pytestmark = pytest.mark.stack
# Each of the factors has 1 to 3 KB.
BUCKET_BYTES = 16 * 1024


class Adapted:
    """A policy with an adapter that has learnt something, as a learner has it."""

    def __init__(self, folder: Path, *, seed: int, **settings: Any) -> None:
        self.model = load_model(folder)
        lora = dataclasses.replace(LORA, **settings)
        self._adapter = add_adapter(self.model, lora, seed=seed, key="lora")
        generator = torch.Generator().manual_seed(seed)
        for name, weight, _ in self._adapter.factors():
            if "lora_B" in name:
                with torch.no_grad():
                    weight.normal_(std=0.3, generator=generator)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight, scale in self._adapter.factors():
            yield f"base_model.model.{name}", weight.detach() * scale


@pytest.fixture(scope="module")
def adapted(folders: dict[str, Path]) -> list[Adapted]:
    """Two policies on the weights that the engine has; the second on fewer layers, and rsLoRA."""
    some = {"target_modules": ["q_proj", "down_proj"], "rslora": True}
    return [Adapted(folders["tied0"], seed=1), Adapted(folders["tied0"], seed=2, **some)]


def test_it_starts_as_the_model_and_takes_one_adapter_after_the_other(
    adapter_engine, models, adapted
):
    first, second = adapted
    adapter_engine.prove(models["tied0"])
    adapter_engine.run(adapter_engine.publish(first.named(), BUCKET_BYTES))
    assert adapter_engine.prove(first.model) < 1e-4
    for other in (models["tied0"], second.model):
        with pytest.raises(FidelityError, match="differs from the learner"):
            adapter_engine.prove(other, tolerance=1e-2)
    # Layers without an adapter in the second one are without it in the engine.
    adapter_engine.run(adapter_engine.publish(second.named(), BUCKET_BYTES // 4))
    assert adapter_engine.prove(second.model) < 1e-4


def test_a_layer_left_out_stops_the_run(adapter_engine, adapted):
    first, _ = adapted
    some = [(name, tensor) for name, tensor in first.named() if "layers.1.mlp.up_proj" not in name]
    adapter_engine.run(adapter_engine.publish(some, BUCKET_BYTES))
    with pytest.raises(FidelityError, match="engine 0 differs"):
        adapter_engine.prove(first.model, tolerance=1e-3)


def test_one_folder_is_there_at_a_time(adapter_engine, adapted):
    first, _ = adapted
    for _ in range(2):
        adapter_engine.run(adapter_engine.publish(first.named(), BUCKET_BYTES))
    folder = Path(adapter_engine.engine._sender.adapter.lora_path)
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]
    assert folder.name == str(adapter_engine.version)


def test_the_adapter_changes_under_running_requests(adapter_engine, adapted):
    """Tokens carry the version that sampled them, and have its log-probabilities."""
    first, second = adapted
    adapter_engine.run(adapter_engine.publish(first.named(), BUCKET_BYTES))
    old = adapter_engine.version

    async def scenario():
        running = asyncio.create_task(adapter_engine.engine.generate(make_prompt(1), (0, 1)))
        await asyncio.sleep(0.3)
        assert not running.done()
        await adapter_engine.publish(second.named(), BUCKET_BYTES // 4)
        return await running

    with adapter_engine.changed(max_response_tokens=250, ignore_eos=True):
        group, failures = adapter_engine.run(scenario())
    assert failures == ()
    for sample in samples_of(group):
        versions = sample.versions[sample.mask]
        assert torch.equal(versions, versions.sort().values)
        for version, policy in ((old, first), (old + 1, second)):
            chosen = sample.versions == version
            assert chosen.any()
            gap = (sample.logprobs - token_logprobs(policy.model, sample.tokens))[chosen].abs()
            assert gap.max() < 1e-4


def test_the_same_tokens_have_other_values_after_a_publish(adapter_engine, adapted):
    """No key-value cache of the adapter before it is left."""
    first, second = adapted
    prompt = make_prompt(3, num_tokens=64)
    for policy in (first, second, first):
        size = BUCKET_BYTES if policy is first else BUCKET_BYTES // 4
        adapter_engine.run(adapter_engine.publish(policy.named(), size))
        (group,) = adapter_engine.generate(prompt, num_samples=1)
        (sample,) = samples_of(group)
        gap = (sample.logprobs - token_logprobs(policy.model, sample.tokens))[sample.mask].abs()
        assert gap.max() < 1e-4
