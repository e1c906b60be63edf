"""Head sizes that the engine lacks are refused by the configuration alone."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
from transformers import AutoConfig

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.requirements import CPU_HEAD_SIZES, check_head_size, head_size


def test_table_is_that_of_the_installed_vllm() -> None:
    """Read from its source: importing vLLM takes ten seconds and changes the process."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent / "v1/attention/backends/cpu_attn.py"
    (function,) = (
        node
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
    )
    (returned,) = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
    assert returned is not None
    assert tuple(ast.literal_eval(returned)) == CPU_HEAD_SIZES


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("llama", {"hidden_size": 80, "num_attention_heads": 2}, 40),
        ("llama", {"hidden_size": 80, "num_attention_heads": 2, "head_dim": 64}, 64),
        ("gpt2", {"n_embd": 48, "n_head": 3}, 16),
        ("qwen2", {"hidden_size": 128, "num_attention_heads": 2}, 64),
        ("deepseek_v3", {}, None),
        ("mamba", {}, None),
    ],
)
def test_size(kind: str, fields: dict[str, int], expected: int | None) -> None:
    assert head_size(AutoConfig.for_model(kind, **fields)) == expected


def model_of(folder: Path, size: int) -> ModelConfig:
    config = AutoConfig.for_model("llama", hidden_size=2 * size, num_attention_heads=2)
    config.save_pretrained(folder)
    return ModelConfig(path=str(folder))


def test_refusal_names_size_and_kernels(tmp_path: Path) -> None:
    model = model_of(tmp_path, 16)
    with pytest.raises(RequestError, match=r"of 16 dimensions, for which vLLM has no kernel.*32"):
        check_head_size(model, GenerationConfig())
    check_head_size(model, GenerationConfig(num_gpus=1))
    check_head_size(model_of(tmp_path, 32), GenerationConfig())
