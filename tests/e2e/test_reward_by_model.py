"""PPO against a trained reward model, with the real engine and trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.models.reward_normalization import RewardNormalization
from rlhf_ray.testing.tiny import tiny_random, tiny_reward_model

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

MOMENTS = RewardNormalization(mean=0.5, standard_deviation=2.0, num_answers=10)
# Every token a byte, so that a response that is text tells which tokens were sampled.
BYTES_ONLY = 260


class Scores:
    """What transformers says of the samples in a rollout file."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def tokens(self, sample: dict[str, Any]) -> list[int]:
        """Prompt, response and, if it is finished, the end of text."""
        end = self.tokenizer.eos_token if sample["finish_reason"] == "stop" else ""
        text = sample["prompt"] + sample["response"] + end
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def normalised(self, sample: dict[str, Any]) -> float:
        return MOMENTS.normalized(
            float(self.model(torch.tensor([self.tokens(sample)])).logits[0, 0])
        )


@pytest.mark.slow
def test_the_reward_is_the_models_score(make_run, tmp_path):
    """Its only part; the critic starts from the same folder."""
    policy = tiny_random(tmp_path / "policy", vocab_size=BYTES_ONLY)
    folder = tmp_path / "reward"
    tiny_reward_model(folder, seed=5, vocab_size=BYTES_ONLY, normalization=MOMENTS)
    run = make_run(
        "algorithm=ppo",
        f"model.path={policy}",
        f"critic.path={folder}",
        f"reward.model.path={folder}",
        "reward.functions=[]",
        "generation.max_response_tokens=2",
        "samples_per_prompt=8",
        "num_steps=2",
    ).succeed(400)
    scores, checked = Scores(folder), 0
    for row in run.metrics():
        samples = run.rollouts(int(row["step"]))
        parts = [sample["reward_parts"]["model"] for sample in samples]
        assert [sample["reward"] for sample in samples] == parts
        assert row["reward/model"] == row["reward/mean"] == pytest.approx(sum(parts) / len(parts))
        for sample in samples:
            num_prompt = len(scores.tokenizer(sample["prompt"])["input_ids"])
            is_text = "\ufffd" not in sample["response"]
            if is_text and len(scores.tokens(sample)) == num_prompt + sample["response_tokens"]:
                expected = scores.normalised(sample)
                assert sample["reward"] == pytest.approx(expected, abs=1e-4)
                checked += 1
        assert row["rollout/failed_groups"] == 0
        assert row["value/grad_norm"] > 0
    assert checked >= 4
    assert "reward_model" in run.text, "the placement names it"


@pytest.mark.nightly
def test_a_reward_model_of_another_tokenizer_reads_the_texts(make_run, tmp_path):
    folder = tmp_path / "reward"
    tiny_reward_model(folder, seed=5, vocab_size=280, normalization=MOMENTS)
    keys = (f"reward.model.path={folder}", "reward.model.num_ranks=2", "reward.model.num_cpus=0.05")
    refused = make_run(*keys, "num_steps=1", output="refused")
    assert refused.wait(120) == 2
    assert "reward.model.foreign_tokens=text" in refused.text
    run = make_run(
        *keys,
        "reward.model.foreign_tokens=text",
        "reward.model.weight=2",
        "reward.model.clip=1.5",
        "num_steps=2",
    ).succeed(400)
    scores = Scores(folder)
    clipped = 0
    for row in run.metrics():
        for sample in run.rollouts(int(row["step"])):
            parts = sample["reward_parts"]
            expected = max(-1.5, min(scores.normalised(sample), 1.5))
            clipped += abs(expected) == 1.5
            assert parts["model"] == pytest.approx(expected, abs=1e-4)
            assert sample["reward"] == pytest.approx(parts["length"] + 2 * parts["model"])
    assert clipped > 0
