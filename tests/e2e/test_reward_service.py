"""A reward model served by one command, and a run of another that learns from its scores."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from rlhf_ray.models.reward_normalization import RewardNormalization
from rlhf_ray.models.tiny.tokenizer import EOS
from rlhf_ray.testing.tiny import tiny_reward_model
from tests.e2e.run_command import REPOSITORY

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]

VARIABLE, TOKEN = "RLHF_RAY_TEST_TOKEN", "a-token-that-nobody-else-has"
NORMALIZATION = RewardNormalization(mean=0.25, standard_deviation=8.0, num_answers=10)


@pytest.fixture
def reward_model(tmp_path) -> Path:
    return tiny_reward_model(tmp_path / "reward", seed=3, normalization=NORMALIZATION)


@pytest.fixture
def service(reward_model, tmp_path, monkeypatch) -> Iterator[subprocess.Popen[str]]:
    """`stage=serve_reward`, which is loading its model."""
    monkeypatch.setenv(VARIABLE, TOKEN)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "rlhf_ray.main", "stage=serve_reward", "serve.port=0"),
            *(f"serve.token_variable={VARIABLE}", f"reward.model.path={reward_model}"),
            *("reward.model.clip=1.5", f"output_dir={tmp_path / 'service'}"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait(timeout=10)


def address_in(service: subprocess.Popen[str], beginning: str) -> str:
    """Of the line that begins like this."""
    assert service.stdout is not None
    for line in service.stdout:
        if line.startswith(beginning):
            return line.split()[-1]
    raise AssertionError(f"the service ended with {service.wait(timeout=10)}")


def score_of(folder: Path, text: str) -> float:
    """What the model says at the end of a text, in the unit of the run."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        value = float(model.score(model.model(ids).last_hidden_state[0, -1]))
    score = (value - NORMALIZATION.mean) / NORMALIZATION.standard_deviation
    return max(-1.5, min(score, 1.5))


def test_a_run_learns_from_a_service(service, reward_model, make_run, tmp_path):
    address_in(service, "loading")
    url = address_in(service, "ready at ")
    request = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert json.load(reply)["model"] == str(reward_model)

    refused = make_run(f"reward.url={url}", output="refused")
    assert refused.wait(240) == 2
    assert "the token is wrong, or reward.http.token_variable names none" in refused.text
    run = make_run(
        f"reward.url={url}",
        f"reward.http.token_variable={VARIABLE}",
        "reward.http.name=service",
        "reward.http.weight=0.5",
        "num_steps=2",
    ).succeed(600)

    rows = [row for step in (1, 2) for row in run.rollouts(step)]
    assert len(rows) == 16
    for row in rows:
        end = EOS if row["finish_reason"] == "stop" else ""
        expected = score_of(reward_model, row["prompt"] + row["response"] + end)
        assert row["reward_parts"]["service"] == pytest.approx(expected, abs=1e-4)
        parts = row["reward_parts"]
        assert row["reward"] == pytest.approx(parts["length"] + 0.5 * parts["service"])
    assert len({row["reward_parts"]["service"] for row in rows}) > 4
    assert all("reward/service" in metrics for metrics in run.metrics())
    written = [path for path in run.output.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in (run.log, *written))

    service.send_signal(signal.SIGTERM)
    assert service.wait(timeout=60) == 0
    assert service.stdout is not None
    assert service.stdout.read().endswith("ended\n")
