"""Learning from preferences on real ranks equals plain torch's loss."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_ray.records.supervised import LabelledTokens
from tests.stack.training.conftest import Seen
from tests.stack.training.preference_scenarios import (
    BETA,
    IS_GOOD,
    RANKINGS,
    answers_of,
    mismatched_of,
    shift,
)
from tests.stack.training.samples import load_samples
from tests.stack.training.test_equality import relative_difference

pytestmark = pytest.mark.stack


class Plain:
    """Ground truth in float64, one answer after the other."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float64)
        self.answers = answers_of(load_samples(folder))

    def logprob(self, answer: LabelledTokens) -> Tensor:
        logits = self.model(input_ids=answer.token_ids[None]).logits[0, :-1]
        chosen = logits.log_softmax(-1).gather(1, answer.token_ids[1:, None])[:, 0]
        return chosen[answer.loss_mask[1:]].sum()

    def log_ratio(self, answer: LabelledTokens) -> Tensor:
        """Metrics against a reference that is the policy, shifted."""
        logprob = self.logprob(answer)
        return logprob - (logprob.detach() + shift(answer.token_ids))

    def dpo(self) -> Tensor:
        losses, likelihoods = [], []
        for own in RANKINGS:
            ratios = [self.log_ratio(self.answers[i]) for i in own]
            pairs = itertools.combinations(ratios, 2)
            losses.append(
                torch.stack([-torch.sigmoid(BETA * (a - b)).log() for a, b in pairs]).mean()
            )
            best = self.answers[own[0]]
            likelihoods.append(-self.logprob(best) / int(best.loss_mask.sum()))
        return torch.stack(losses).mean() + 0.5 * torch.stack(likelihoods).mean()

    def kto(self) -> Tensor:
        with torch.no_grad():
            ratios = [self.log_ratio(pair) for pair in mismatched_of(self.answers)]
            point = torch.stack(ratios).mean().clamp(min=0)
        losses = []
        for answer, is_good in zip(self.answers, IS_GOOD, strict=True):
            score = BETA * (self.log_ratio(answer) - point)
            losses.append(2 * (1 - score.sigmoid()) if is_good else 1 - (-score).sigmoid())
        return torch.stack(losses).mean()

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        loss.backward()
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return {f"model.{name}": value for name, value in found.items()}


@pytest.mark.parametrize(("name", "loss"), [("prefer", Plain.dpo), ("judge", Plain.kto)])
def test_loss_and_gradient_are_plain_torch(compared: Seen, name, loss):
    plain, result = Plain(compared.folder), compared.one[name]
    expected = loss(plain)
    assert result["metrics"]["train/loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert relative_difference(result["gradient"], plain.gradient(expected)) < 1e-5
    assert result["before"]["eval/loss"] == pytest.approx(result["metrics"]["train/loss"], rel=1e-6)
    assert result["after"]["eval/loss"] < result["before"]["eval/loss"], "the step lowers the loss"


def test_the_policy_is_the_reference_before_the_first_step(compared: Seen):
    found = [compared.one, *compared.two]
    for name, expected in (("prefer", math.log(2)), ("judge", (2 * 2 + 3) / 2 / 5)):
        for result in (own[key] for own in found for key in own if key.startswith(name)):
            start = result["at_start"]
            loss = start["eval/loss"] - 0.5 * start.get("eval/sft_loss", 0.0)
            assert loss == pytest.approx(expected, abs=1e-6)
            assert start["eval/reward_margin"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("name", ["prefer", "judge"])
def test_two_uneven_ranks_are_one(compared: Seen, name, stage):
    one = compared.one[name]
    own = [rank[f"{name}_zero_{stage}"]["num_own_tokens"] for rank in compared.two]
    assert own[0] != own[1]
    assert sum(own) == one["num_own_tokens"]
    assert one["metrics"]["tokens/trained"] == one["num_own_tokens"]
    for rank in compared.two:
        two = rank[f"{name}_zero_{stage}"]
        assert relative_difference(two["gradient"], one["gradient"]) < 1e-6
        for when in ("before", "metrics", "after"):
            # A reward is a small difference of large sums.
            assert two[when] == pytest.approx(one[when], rel=2e-6, abs=1e-6)
