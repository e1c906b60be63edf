"""Engines that are started once for all tests here: a start takes 20 seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from rlhf_ray.testing.tiny import tiny_random
from tests.stack.generation.harness import LORA, StartedEngine, load_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders: tied and untied, of two seeds."""
    root = tmp_path_factory.mktemp("models")
    return {
        f"{kind}{seed}": tiny_random(root / f"{kind}{seed}", seed=seed, tied=kind == "tied")
        for kind in ("tied", "untied")
        for seed in (0, 1)
    }


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> dict[str, PreTrainedModel]:
    """The same models in transformers: what the learner would have."""
    return {name: load_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def tied_engine(folders: dict[str, Path]) -> Iterator[StartedEngine]:
    started = StartedEngine(folders["tied0"])
    yield started
    started.close()


@pytest.fixture(scope="session")
def untied_engine(folders: dict[str, Path]) -> Iterator[StartedEngine]:
    started = StartedEngine(folders["untied0"])
    yield started
    started.close()


@pytest.fixture(scope="session")
def adapter_engine(folders: dict[str, Path]) -> Iterator[StartedEngine]:
    """An engine that takes adapters."""
    started = StartedEngine(folders["tied0"], lora=LORA)
    yield started
    started.close()


@pytest.fixture
def engine(tied_engine: StartedEngine, models: dict[str, PreTrainedModel]) -> StartedEngine:
    """The tied engine with the weights of seed 0, whatever a test before this one did."""
    tied_engine.run(tied_engine.update(models["tied0"]))
    return tied_engine
