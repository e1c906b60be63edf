"""Scenarios of a reward model that learns from rankings. See `scenarios`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rlhf_ray.objectives.rankings import spread_rankings
from rlhf_ray.records.preferences import PreferenceSamples, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from tests.stack.training.rank import Rank, record_gradients, record_rows, weights_of
from tests.stack.training.samples import VOCABULARY

MAX_TOKENS = 30
# Tokens of the answers, after a prompt of two tokens, best first; and the margin.
SHAPES = (((5, 9), None), ((7, 4, 6), 0.5), ((3, 8), 1.5), ((10, 4), 0.0), ((4, 5), None))


def rankings() -> list[Ranking]:
    """Five rankings, one of them of three answers."""
    generator = torch.Generator().manual_seed(11)

    def answer(prompt: torch.Tensor, length: int) -> LabelledTokens:
        tokens = torch.randint(0, VOCABULARY, (length - 2,), generator=generator)
        return LabelledTokens(
            token_ids=torch.cat([prompt, tokens]), loss_mask=torch.arange(length) >= 2
        )

    made = []
    for lengths, margin in SHAPES:
        prompt = torch.randint(0, VOCABULARY, (2,), generator=generator)
        made.append(Ranking(answers=tuple(answer(prompt, n) for n in lengths), margin=margin))
    return made


def own_rankings(here: Rank, layout: str) -> PreferenceSamples:
    """This rank's part, as a stage spreads them."""
    plan = here.plan(MAX_TOKENS, layout=layout)
    return spread_rankings(rankings(), plan, use_margins=True)[here.share]


def rank_answers(here: Rank, *, layout: str = "padded", **settings: Any) -> dict[str, Any]:
    """Evaluate, learn for a step, evaluate again."""
    samples = own_rankings(here, layout)
    with here.reward_trainer(
        layout=layout, max_tokens_per_micro_batch=MAX_TOKENS, **settings
    ) as trainer:
        gradients = record_gradients(trainer)
        shapes = record_rows(trainer)
        before = trainer.evaluate(samples)
        metrics = trainer.update([samples])
        return {
            "before": before,
            "metrics": metrics,
            "after": trainer.evaluate(samples),
            "gradient": gradients[0],
            "rows": shapes,
            "num_own_tokens": int(samples.lengths.sum()),
            "weights": weights_of(trainer),
        }


def saved_reward_model(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Learn from a language model, write the result; and again after a resume."""
    samples = own_rankings(here, "padded")
    settings = {"path": "policy", "max_tokens_per_micro_batch": MAX_TOKENS, **settings}
    folder = here.folder / f"trained_reward_model_{here.world_size}_{name}"
    with here.reward_trainer(**settings) as trainer:
        before = trainer.evaluate(samples)
        for _ in range(3):
            trainer.update([samples])
        trainer.save_model(folder)
        trainer.save_checkpoint(folder / "checkpoint")
        after = trainer.evaluate(samples)
    with here.reward_trainer(**settings) as trainer:
        trainer.load_checkpoint(folder / "checkpoint")
        trainer.save_model(folder / "resumed")
        return {"before": before, "after": after, "resumed": trainer.evaluate(samples)}


RANKED: dict[int, dict[str, Callable[[Rank], Any]]] = {
    1: {
        "rank": rank_answers,
        "rank_packed": partial(rank_answers, layout="packed"),
        "rank_recomputed": partial(rank_answers, gradient_checkpointing=True),
        "saved_reward_model": partial(saved_reward_model, name="zero_0"),
    },
    2: {
        "rank_zero_0": partial(rank_answers, zero_stage=0),
        "rank_zero_3": partial(rank_answers, zero_stage=3),
        "rank_packed_zero_3": partial(rank_answers, layout="packed", zero_stage=3),
        "saved_reward_model": partial(saved_reward_model, name="zero_3", zero_stage=3),
    },
}
