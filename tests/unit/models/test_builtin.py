"""Built-in models: the table, the cache, and (slowly) what the warmed-up model can do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.builtin import arithmetic
from rlhf_ray.models.builtin import BUILTIN_MODELS, BuiltinModel, models_cache, resolve_model_path


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A quick entry `quick` in the table, and the seeds for which it was made."""
    seeds: list[int] = []

    def make(folder: Path, seed: int, report: Callable[[str], None]) -> None:
        seeds.append(seed)
        (folder / "config.json").write_text(str(seed))

    entry = BuiltinModel(about="for this test", version=3, make=make)
    monkeypatch.setitem(BUILTIN_MODELS, "quick", entry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return seeds


def test_other_paths_are_returned_as_they_are(made: list[int]) -> None:
    for path in ("/some/folder", "owner/name", ""):
        assert resolve_model_path(path, seed=0) == path
    assert made == []


def test_made_once_for_each_seed(made: list[int], tmp_path: Path) -> None:
    reports: list[str] = []
    folders = [
        resolve_model_path("builtin:quick", seed=seed, report=reports.append) for seed in (0, 1, 0)
    ]
    assert made == [0, 1]
    assert folders[0] == folders[2] == str(tmp_path / "rlhf_ray" / "models" / "quick-seed0-v3")
    assert (Path(folders[1]) / "config.json").read_text() == "1"
    assert len(reports) == 2
    assert all("making builtin:quick" in line for line in reports)


def test_another_version_is_made_again(made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model_path("builtin:quick", seed=0)
    newer = BuiltinModel(about="", version=4, make=BUILTIN_MODELS["quick"].make)
    monkeypatch.setitem(BUILTIN_MODELS, "quick", newer)
    assert resolve_model_path("builtin:quick", seed=0) != first
    assert made == [0, 0]


def test_unknown_name() -> None:
    with pytest.raises(RequestError, match=r"did you mean builtin:arithmetic.* There are: arith"):
        resolve_model_path("builtin:arithmetics", seed=0)
    with pytest.raises(RequestError, match="no built-in model ''"):
        resolve_model_path("builtin:", seed=0)


def test_cache_without_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert models_cache() == Path("/home/somebody/.cache/rlhf_ray/models")


def test_looking_at_the_table_loads_no_torch() -> None:
    code = (
        "import sys, rlhf_ray.models.builtin, rlhf_ray.models.smollm2\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@torch.no_grad()
def accuracy(folder: Path, *, repeats: int, greedy: bool) -> float:
    """Share of exactly right answers to all 100 sums, `repeats` times each."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = list(arithmetic())
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": fact["prompt"]}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for fact in facts
    ]
    tokens = torch.tensor(prompts).repeat(repeats, 1)
    torch.manual_seed(0)
    output = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=6,
        do_sample=not greedy,
        top_k=0,
    )
    answers = tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True)
    expected = [fact["answer"] for fact in facts] * repeats
    return sum(a == b for a, b in zip(answers, expected, strict=True)) / len(expected)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_arithmetic_leaves_room_to_learn(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(resolve_model_path("builtin:arithmetic", seed=seed))
    assert 0.33 <= accuracy(folder, repeats=30, greedy=False) <= 0.50
    assert accuracy(folder, repeats=1, greedy=True) >= 0.90
    started = time.monotonic()
    assert resolve_model_path("builtin:arithmetic", seed=seed) == str(folder)
    assert time.monotonic() - started < 1
