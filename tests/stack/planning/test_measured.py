"""The planner against the memory of real ranks on CPUs: what an update takes at most.

The memory of a process with a model of a few hundred weights is taken off: libraries, threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.planning.needs import phase_needs
from rlhf_ray.planning.shape import local_model, model_shape
from rlhf_ray.testing.tiny import tiny_random
from tests.stack.training.conftest import free_ports

pytestmark = [pytest.mark.stack, pytest.mark.nightly]

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 900.0
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def sizes(
    hidden: int, layers: int, heads: int, keys: int, inner: int, vocab: int
) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "vocab_size": vocab,
    }


MODELS = {
    "nothing": sizes(32, 1, 2, 1, 32, 320),
    "tiny": sizes(512, 8, 8, 4, 1536, 8192),
    "smollm2-135m": sizes(576, 30, 9, 3, 1536, 49152),
}
AGAIN = {"gradient_checkpointing": True}
CASES = [
    ("tiny", 1, {"zero_stage": 0}),
    ("tiny", 1, {"zero_stage": 0, **AGAIN}),
    ("tiny", 2, {"zero_stage": 2, **AGAIN}),
    ("tiny", 2, {"zero_stage": 3, **AGAIN}),
    ("tiny", 2, {"zero_stage": 2, "offload_optimizer": True, **AGAIN}),
    ("smollm2-135m", 1, {"zero_stage": 0, **AGAIN}),
    ("smollm2-135m", 2, {"zero_stage": 2, **AGAIN}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_random(folder / "tokenizer")
    for name, values in MODELS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(LLAMA | values), encoding="utf-8")
    return folder


def measured(folder: Path, model: str, num_ranks: int, settings: dict[str, Any]) -> int:
    """Bytes that rank 0 takes at most in an update."""
    (port,) = free_ports(1)
    results = [folder / f"{model}_{rank}.json" for rank in range(num_ranks)]
    # Freed memory goes back at once: what is measured is what is used.
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY), "MALLOC_MMAP_THRESHOLD_": "65536"}
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.stack.planning.measure"),
                *(str(rank), str(num_ranks), str(port), str(folder / model), str(result)),
                json.dumps(settings),
            ],
            cwd=REPOSITORY,
            env=environ,
        )
        for rank, result in enumerate(results)
    ]
    try:
        assert [process.wait(timeout=DEADLINE_S) for process in ranks] == [0] * num_ranks
    finally:
        for process in ranks:
            process.kill()
    return json.loads(results[0].read_text(encoding="utf-8"))["most"]


def planned(folder: Path, model: str, num_ranks: int, settings: dict[str, Any]) -> float:
    """Bytes of the largest phase of an update, without those of the process."""
    config = load_config(["stage=sft", "model.path=a/b", "examples.path=a/b"])
    config.training = TrainingConfig(num_ranks=num_ranks, **settings)
    shape = model_shape(local_model(str(folder / model)) or {})
    assert shape is not None
    needs = {need.phase: need.host for need in phase_needs(config, shape)}
    totals = [sum(needs[phase].values()) for phase in ("update", "optimizer step")]
    return max(totals) - needs["update"]["process"]


@pytest.mark.parametrize(("model", "num_ranks", "settings"), CASES)
def test_an_update_takes_what_is_planned(models, model, num_ranks, settings):
    settings = {"dtype": "float32", "max_tokens_per_micro_batch": 1024, **settings}
    libraries = measured(models, "nothing", num_ranks, settings)
    found = measured(models, model, num_ranks, settings) - libraries
    expected = planned(models, model, num_ranks, settings)
    print(f"measured {found / 2**20:.0f} MiB, planned {expected / 2**20:.0f} MiB")
    assert expected == pytest.approx(found, rel=0.1)
