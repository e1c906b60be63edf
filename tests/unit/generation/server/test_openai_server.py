"""Arguments and environment of vLLM's server, without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.engine_arguments import refuse_unknown, server_arguments
from rlhf_ray.generation.server.openai_server import server_environment


def arguments_of(
    generation: GenerationConfig, *, max_model_tokens: int | None = None, **model: str
) -> dict[str, object]:
    return server_arguments(
        generation,
        ModelConfig(path="a/b", **model),
        model_name="b",
        max_model_tokens=max_model_tokens,
        socket="/tmp/0.sock",
    )


def test_arguments():
    generation = GenerationConfig(kv_cache_gib=2, extra_engine_args={"max_logprobs": 3})
    arguments = arguments_of(generation, max_model_tokens=64, chat_template="t.jinja")
    expected = {
        "model": "a/b",
        "tokenizer": "a/b",
        "served_model_name": ["b"],
        "uds": "/tmp/0.sock",
        "max_model_len": 64,
        "chat_template": "t.jinja",
        "kv_cache_memory_bytes": 2 * 1024**3,
        "disable_log_stats": False,
        "max_logprobs": 3,
    }
    assert {name: arguments[name] for name in expected} == expected
    bare = arguments_of(GenerationConfig())
    assert not {"max_model_len", "chat_template", "max_logprobs", "weight_transfer_config"} & set(
        bare
    )


def environment_of(generation: GenerationConfig, replica: int, gpus: str | None) -> dict[str, str]:
    return server_environment(
        generation, replica=replica, scratch=Path("/tmp/s"), visible_gpus=gpus
    )


@pytest.mark.parametrize(
    ("ranks", "share", "replica", "visible", "expected"),
    [
        (1, 1.0, 0, None, "0"),
        (1, 1.0, 2, None, "2"),
        (2, 1.0, 1, None, "2,3"),
        (2, 1.0, 1, "4,5,6,7", "6,7"),
        (1, 0.5, 0, "3", "3"),
        (1, 0.5, 1, "3", "3"),
        (1, 0.5, 2, "3,1", "1"),
    ],
)
def test_gpus_of_replicas(ranks, share, replica, visible, expected):
    generation = GenerationConfig(tensor_parallel_size=ranks, num_gpus=share)
    assert environment_of(generation, replica, visible)["CUDA_VISIBLE_DEVICES"] == expected


def test_more_replicas_than_gpus():
    generation = GenerationConfig(num_gpus=1)
    with pytest.raises(RequestError, match=r"lower serve\.replicas"):
        environment_of(generation, 2, "0,1")


def test_without_gpus():
    environment = environment_of(GenerationConfig(), 1, "0")
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert environment["VLLM_RPC_BASE_PATH"] == "/tmp/s"


def test_unknown_arguments():
    with pytest.raises(
        RequestError, match=r"no engine argument 'max_model_length'; .*max_model_len"
    ):
        refuse_unknown({"max_model_length": 1}, ["max_model_len", "seed"])
