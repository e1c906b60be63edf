"""Sizes in a config.json that no model has: a sentence with the key before anything starts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.config_file import load_model_config


def read(folder: Path):
    return load_model_config(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0, and must be at least 1"),
        ({"num_attention_heads": -2}, "num_attention_heads is -2, and must be at least 1"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 2, which is no multiple of num_key"),
        ({"hidden_size": "many"}, "hidden_size is 'many', and must be a whole number"),
        ({"hidden_size": 2.5}, "hidden_size is 2.5, and must be a whole number"),
        ({"hidden_size": float("nan")}, "hidden_size is nan, and must be a whole number"),
        ({"hidden_size": True}, "hidden_size is True, and must be a whole number"),
        ({"hidden_size": 10**400}, "and no model has more than 1,000,000"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, and no model has more"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"max_position_embeddings": "1k"}, "max_position_embeddings is '1k'"),
        ({"hidden_size": 65, "head_dim": None}, "num_attention_heads=2 does not divide"),
        ({"text_config": {"n_layer": 0}}, r"text_config\.n_layer is 0"),
        ({"hidden_size": 0, "vocab_size": "x"}, "hidden_size is 0, .*; vocab_size is 'x'"),
        # Left to the library, whose kind of error is then named.
        ({"rope_parameters": "fast"}, "cannot load a model"),
        ({"hidden_act": 7, "rms_norm_eps": []}, "cannot load a model"),
    ],
)
def test_wrong_sizes(copy: Path, edit, fields, message: str) -> None:
    edit(copy / "config.json", **fields)
    with pytest.raises(RequestError, match=f"(?s)model.path is '.*copy': .*{message}"):
        read(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "config.json holds a list, and not an object"),
        ("3", "config.json holds a int"),
        ('{"model_type": "llama"', "config.json cannot be read"),
        ("", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
    ],
)
def test_no_object(copy: Path, text: str, message: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(RequestError, match=message):
        read(copy)


def test_no_text(copy: Path) -> None:
    (copy / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match=r"config\.json cannot be read"):
        read(copy)


def test_sizes_that_models_have(copy: Path, edit) -> None:
    """Heads of another width than the model's, a list with one width per layer, no window."""
    edit(copy / "config.json", head_dim=96, sliding_window=0, n_inner=None)
    started = time.monotonic()
    assert read(copy).head_dim == 96
    assert time.monotonic() - started < 5
