"""Rankings: where a score is read, and the loss against a hand computation."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.batching.row_layout import row_layout
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.models.loading import load_scalar_head
from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.objectives.rankings import (
    mean_calibration_error,
    ranking_objective,
    scores_of,
    spread_rankings,
)
from rlhf_ray.records.preferences import PreferenceSamples, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.testing.tiny import tiny_random
from rlhf_ray.training.forward.modules import ValueForward

SIZES = TinySizes(
    hidden=32, intermediate=64, num_layers=2, num_heads=4, num_key_value_heads=2, head_size=8
)


def answer(*token_ids: int, behind: int = 0) -> LabelledTokens:
    """A prompt of two tokens; the last `behind` tokens are no part of the answer."""
    mask = torch.ones(len(token_ids), dtype=torch.bool)
    mask[:2] = False
    mask[len(token_ids) - behind :] = False
    return LabelledTokens(token_ids=torch.tensor(token_ids), loss_mask=mask)


THREE = Ranking(answers=(answer(1, 2, 10), answer(1, 2, 11, 12), answer(1, 2, 13)), margin=0.5)
PAIR = Ranking(answers=(answer(3, 4, 20, 21, 22), answer(3, 4, 23)), margin=None)
TAIL = Ranking(answers=(answer(5, 6, 30, 99, behind=1), answer(5, 6, 31, 32)), margin=2.0)
RANKINGS = (THREE, PAIR, TAIL)


def plan(num_ranks: int = 1, budget: int = 1000, layout: str = "padded") -> RankPlan:
    return RankPlan(num_ranks=num_ranks, max_tokens_per_micro_batch=budget, layout=layout)


def scored(samples: PreferenceSamples) -> list[list[int]]:
    """The tokens before the predicted one, sample by sample."""
    parts = samples.token_ids.split(samples.lengths.tolist())
    masks = samples.loss_mask.split(samples.lengths.tolist())
    assert all(mask.tolist() == [False] * (len(mask) - 1) + [True] for mask in masks)
    return [part[:-1].tolist() for part in parts]


def test_a_score_is_read_at_the_last_token_of_the_answer() -> None:
    (samples,) = spread_rankings(RANKINGS, plan(), use_margins=True)
    found = sorted(scored(samples))
    assert found == sorted(
        [
            *([1, 2, 10], [1, 2, 11, 12], [1, 2, 13]),
            *([3, 4, 20, 21, 22], [3, 4, 23]),
            *([5, 6, 30], [5, 6, 31, 32]),
        ]
    )


@pytest.mark.parametrize(("use_margins", "expected"), [(True, [0.0, 0.5, 2.0]), (False, [0.0])])
def test_margins(use_margins: bool, expected: list[float]) -> None:
    (samples,) = spread_rankings(RANKINGS, plan(), use_margins=use_margins)
    assert sorted(set(samples.margins.tolist())) == expected


def test_the_made_up_token_costs_nothing_of_the_budget() -> None:
    """Three rows of five tokens; of the pair, two: all count as the largest."""
    assert spread_rankings(RANKINGS, plan(budget=15), use_margins=True)
    with pytest.raises(ValueError, match=r"3 answers of 5 tokens.*is 14; raise it to at least 15"):
        spread_rankings(RANKINGS, plan(budget=14), use_margins=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_random(tmp_path_factory.mktemp("model") / "m", seed=3, vocab_size=260, sizes=SIZES)


class Model:
    """A model with a random head, in float64 that scores samples in some layout."""

    def __init__(self, folder: Path) -> None:
        model = load_scalar_head(ModelConfig(path=str(folder)), dtype="float32")
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
        self.model = model.double()
        self.forward = ValueForward(self.model)

    @torch.no_grad()
    def scores(self, samples: PreferenceSamples, layout: str) -> dict[tuple[int, ...], float]:
        settings = TrainingConfig(layout=layout, max_tokens_per_micro_batch=1000)
        rows = row_layout(self.model.backbone, settings, "sdpa")
        own = scored(samples)
        found: dict[tuple[int, ...], float] = {}
        for numbers in samples.micro_batches:
            batch = rows.lay_out(
                samples.token_ids,
                samples.lengths,
                samples.loss_mask,
                samples.support_token_ids,
                numbers,
            )
            values = self.forward(batch.input_ids, batch.hidden_index, batch.packing)
            scores = scores_of(values[: batch.num_targets], samples, batch)
            assert scores.samples.tolist() == list(numbers)
            assert int(scores.num_tokens) == sum(len(own[n]) for n in numbers)
            found |= {tuple(own[n]): float(v) for n, v in zip(numbers, scores.values, strict=True)}
        return found

    @torch.no_grad()
    def plain(self, tokens: tuple[int, ...]) -> Tensor:
        """Values of one answer alone, at every token."""
        return self.model(torch.tensor([tokens]))[0]


@pytest.mark.parametrize("layout", ["padded", "packed", "auto"])
@pytest.mark.parametrize(("num_ranks", "budget"), [(1, 1000), (1, 15), (2, 20)])
def test_padding_and_layout_do_not_change_a_score(
    tiny: Path, layout: str, num_ranks: int, budget: int
) -> None:
    model = Model(tiny)
    found: dict[tuple[int, ...], float] = {}
    for samples in spread_rankings(RANKINGS, plan(num_ranks, budget, layout), use_margins=True):
        found |= model.scores(samples, layout)
    assert len(found) == 7
    for tokens, score in found.items():
        assert score == pytest.approx(float(model.plain(tokens)[-1]), abs=1e-9)


def test_an_answer_that_is_cut_is_scored_where_it_is_cut(tiny: Path) -> None:
    """Tokens after the answer change nothing."""
    model = Model(tiny)
    whole = (3, 4, 20, 21, 22)
    cut = Ranking(answers=(answer(*whole[:4]), answer(3, 4, 23)), margin=None)
    (samples,) = spread_rankings([cut], plan(), use_margins=True)
    found = model.scores(samples, "padded")
    assert found[whole[:4]] == pytest.approx(float(model.plain(whole)[3]), abs=1e-9)


def objective(scores: dict[tuple[int, ...], float], samples: PreferenceSamples, centring: float):
    """The sums and the loss over all micro-batches, from given scores."""
    own = scored(samples)
    rows = row_layout(None, TrainingConfig(layout="padded"), "sdpa")
    total, sums = 0.0, {}
    for numbers in samples.micro_batches:
        batch = rows.lay_out(
            samples.token_ids,
            samples.lengths,
            samples.loss_mask,
            samples.support_token_ids,
            numbers,
        )
        values = torch.tensor([scores[tuple(own[n])] for n in numbers], requires_grad=True)
        part = ranking_objective(
            scores_of(values[: batch.num_targets], samples, batch),
            samples,
            centring_coefficient=centring,
            name="x",
        )
        part.loss.backward()
        total += float(part.loss.detach())
        for name, value in part.sums.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return total, sums


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


SCORES = {
    (1, 2, 10): 1.0,
    (1, 2, 11, 12): 0.25,
    (1, 2, 13): 0.5,
    (3, 4, 20, 21, 22): -1.0,
    (3, 4, 23): 0.5,
    (5, 6, 30): 3.0,
    (5, 6, 31, 32): 3.0,
}


@pytest.mark.parametrize(("num_ranks", "budget"), [(1, 1000), (1, 15), (2, 15), (4, 1000)])
@pytest.mark.parametrize("centring", [0.0, 0.1])
def test_every_ranking_counts_once(num_ranks: int, budget: int, centring: float) -> None:
    """-log sigmoid(d) = softplus(-d); the ranking of three is the mean of its three pairs."""
    three = [1.0, 0.25, 0.5]
    of_three = [
        softplus(0.5 - (a - b)) + centring * (a + b) ** 2
        for a, b in itertools.combinations(three, 2)
    ]
    expected = (
        sum(of_three) / 3
        + (softplus(1.5) + centring * 0.5**2)
        + (softplus(2.0) + centring * 6.0**2)
    ) / 3
    found = [
        objective(SCORES, samples, centring)
        for samples in spread_rankings(RANKINGS, plan(num_ranks, budget), use_margins=True)
    ]
    sums: dict[str, float] = {}
    for _, own in found:
        for name, value in own.items():
            sums[name] = sums.get(name, 0.0) + value
    assert sum(loss for loss, _ in found) == pytest.approx(expected, rel=1e-6)
    metrics, error = mean_calibration_error(sums)
    # 1.0 > 0.25, 1.0 > 0.5, 0.25 < 0.5; -1.0 < 0.5; a tie.
    assert metrics == {
        "x/loss": pytest.approx(expected, rel=1e-6),
        "x/accuracy": pytest.approx((2 / 3 + 0 + 0.5) / 3),
        "x/margin": pytest.approx(((0.75 + 0.5 - 0.25) / 3 - 1.5 + 0.0) / 3),
        "x/tokens": 3 + 4 + 3 + 5 + 3 + 3 + 4,
    }
    # Sigmoids of 0.75 and 0.5 and 0.25 lie in bins 3, 2 and 1, that of 1.5 in 6, of 0 in 0.
    sigmoid = [1 / (1 + math.exp(-d)) for d in (0.75, 0.5, 0.25, 1.5)]
    gaps = [1 - sigmoid[0], 1 - sigmoid[1], sigmoid[2], sigmoid[3], 0.0]
    assert error == pytest.approx(sum(gaps) / 5)
