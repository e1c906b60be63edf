"""Learning from rankings on real ranks equals plain torch's loss."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.loading import load_scalar_head
from rlhf_ray.models.reward_normalization import read_normalization
from tests.stack.training.conftest import Seen
from tests.stack.training.rank import CENTRING_COEFFICIENT
from tests.stack.training.ranking_scenarios import rankings
from tests.stack.training.test_equality import assert_same_metrics, relative_difference

pytestmark = pytest.mark.stack
NUM_TOKENS = 65.0


def plain_scores(folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, list[list[Tensor]]]:
    """Scores of transformers' classifier, one answer after the other."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    assert model.config.num_labels == 1
    return model, [
        [model(input_ids=answer.token_ids[None]).logits[0, 0] for answer in ranking.answers]
        for ranking in rankings()
    ]


def plain_loss(folder: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Ground truth in float64: the mean over rankings of the mean over their pairs."""
    model, scores = plain_scores(folder, torch.float64)
    losses = []
    for ranking, own in zip(rankings(), scores, strict=True):
        pairs = [
            -F.logsigmoid(a - b - (ranking.margin or 0.0)) + CENTRING_COEFFICIENT * (a + b) ** 2
            for a, b in itertools.combinations(own, 2)
        ]
        losses.append(torch.stack(pairs).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    names = {"model.": "model.backbone.", "score.": "model.head."}
    gradient = {}
    for name, parameter in model.named_parameters():
        old = next(prefix for prefix in names if name.startswith(prefix))
        gradient[names[old] + name.removeprefix(old)] = parameter.grad
    return loss.detach(), gradient


def test_loss_and_gradient_are_those_of_plain_torch(seen: Seen):
    result = seen.one["rank"]
    loss, gradient = plain_loss(seen.folder / "reward_model")
    assert result["metrics"]["train/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert relative_difference(result["gradient"], gradient) < 1e-5
    assert result["metrics"]["tokens/trained"] == NUM_TOKENS
    recomputed = seen.one["rank_recomputed"]
    assert relative_difference(recomputed["gradient"], gradient) < 1e-5


@pytest.mark.parametrize("stage", [0, 3])
def test_two_uneven_ranks_are_one(seen: Seen, stage):
    one = seen.one["rank"]
    own = [rank[f"rank_zero_{stage}"]["num_own_tokens"] for rank in seen.two]
    assert own[0] != own[1]
    assert sum(own) == one["num_own_tokens"]
    for rank in seen.two:
        two = rank[f"rank_zero_{stage}"]
        assert relative_difference(two["gradient"], one["gradient"]) < 1e-6
        for name in ("before", "metrics", "after"):
            assert_same_metrics(two[name], one[name], rel=2e-6)


def test_packing_changes_nothing(seen: Seen):
    padded = seen.one["rank"]
    for packed in (seen.one["rank_packed"], seen.two[0]["rank_packed_zero_3"]):
        assert relative_difference(packed["gradient"], padded["gradient"]) < 1e-5
        for name in ("before", "metrics", "after"):
            assert_same_metrics(packed[name], padded[name], rel=1e-5)
    rows = [sum(s[0] for s in seen.one[name]["rows"]) for name in ("rank_packed", "rank")]
    assert rows[0] < rows[1], "several answers share a row"


def test_an_evaluation_is_the_loss_and_learns_nothing(seen: Seen):
    for result in (seen.one["rank"], seen.two[1]["rank_zero_3"]):
        before, metrics, after = result["before"], result["metrics"], result["after"]
        assert set(before) == {
            f"eval/{name}" for name in ("loss", "accuracy", "margin", "calibration_error")
        }
        for name in ("loss", "accuracy", "margin"):
            assert before[f"eval/{name}"] == pytest.approx(metrics[f"train/{name}"], rel=1e-6)
        assert after["eval/loss"] < before["eval/loss"], "the step lowers the loss"


@pytest.mark.parametrize("folder", ["1_zero_0", "2_zero_3"])
def test_the_saved_model_gives_the_scores_of_the_ranks(seen: Seen, folder: str):
    """It loads in transformers and as a critic, and both give the scores of the ranks."""
    place = seen.folder / f"trained_reward_model_{folder}"
    result = (seen.one if folder.startswith("1") else seen.two[0])["saved_reward_model"]
    assert result["before"]["eval/accuracy"] == 0.5, "a head of zeros knows nothing"
    assert result["after"]["eval/accuracy"] > 0.5
    with torch.no_grad():
        _, scores = plain_scores(place, torch.float32)
        head = load_scalar_head(ModelConfig(path=str(place)), dtype="float32")
        for ranking, own in zip(rankings(), scores, strict=True):
            for answer, score in zip(ranking.answers, own, strict=True):
                assert float(head(answer.token_ids[None])[0, -1]) == pytest.approx(
                    float(score), abs=1e-5
                )
    differences = [
        torch.stack([a - b for a, b in itertools.combinations(own, 2)]).mean() for own in scores
    ]
    mean = float(torch.stack(differences).mean())
    assert result["after"]["eval/margin"] == pytest.approx(mean, abs=1e-5)
    flat = torch.stack([score for own in scores for score in own])
    normalization = read_normalization(place)
    assert normalization.num_answers == 3 * 11
    assert normalization.mean == pytest.approx(float(flat.mean()), abs=1e-5)
    spread = float(flat.std(correction=0))
    assert normalization.standard_deviation == pytest.approx(spread, abs=1e-5)
    assert result["resumed"] == result["after"]
    assert read_normalization(place / "resumed") == normalization


def test_transformers_pads_as_the_tokenizer_does(seen: Seen):
    """Rows of several lengths, an end-of-text token after each answer."""
    place = seen.folder / "trained_reward_model_1_zero_0"
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    texts = [text + tokenizer.eos_token for text in ("What is this?", "The answer.")]
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0, 0] for text in texts]
        both = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
    assert both.tolist() == pytest.approx([float(score) for score in alone], abs=1e-5)
