"""A mixture of experts in a real engine: right after every publish, however the weights came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from rlhf_ray.publish.gate import FidelityError
from rlhf_ray.publish.transports import COLLECTIVE, IPC
from rlhf_ray.testing.tiny import tiny_mixture
from tests.stack.generation.harness import StartedEngine, load_model
from tests.stack.generation.test_transports import channel, rpc, scores

pytestmark = [pytest.mark.stack, pytest.mark.nightly]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("mixtures")
    return [tiny_mixture(root / f"seed{seed}", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def mixtures(folders: list[Path]) -> list[PreTrainedModel]:
    return [load_model(folder) for folder in folders]


@pytest.fixture(scope="module")
def mixture_engine(folders: list[Path]) -> Iterator[StartedEngine]:
    started = StartedEngine(folders[0])
    yield started
    started.close()


def test_every_transport_brings_the_experts(mixture_engine, mixtures):
    engine, (old, new) = mixture_engine, mixtures
    engine.prove(old)
    scored = []
    # Twice: experts that were packed once may stay right for one publish and not for the next.
    for model in (new, old, new):
        engine.run(engine.update(model))
        engine.prove(model)
        with pytest.raises(FidelityError):
            engine.prove(old if model is new else new, tolerance=0.5)
    scored.append(scores(engine))
    for kind in (COLLECTIVE, IPC):
        with channel(kind, engine, new) as opened:
            for model in (old, new):
                assert opened.publish(model) == ("", "")
                engine.prove(model)
        scored.append(scores(engine))
    assert scored[0] == scored[1] == scored[2]


def test_experts_without_the_mend_stop_the_run(mixture_engine, mixtures):
    engine, (old, new) = mixture_engine, mixtures
    rpc(engine, "leave_out_experts", True)
    try:
        engine.run(engine.update(old))
        engine.run(engine.update(new))
        with pytest.raises(FidelityError, match="engine 0 differs"):
            engine.prove(new, tolerance=1e-3)
    finally:
        rpc(engine, "leave_out_experts", False)
    engine.run(engine.update(new))
    engine.prove(new)
