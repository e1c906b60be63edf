"""stage=reward_model as a command: what it learns, and what its result is to others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples import load_rankings
from rlhf_ray.models.reward_normalization import read_normalization

pytestmark = pytest.mark.stack
GOOD, BAD = ("certainly", "gladly", "of course"), ("no", "never", "go away")
RANKINGS = ExamplesConfig(eval_share=0.25, max_tokens=64)


def _write_preferences(file: Path) -> None:
    """Polite answers are better; what is asked says nothing."""
    rows = [
        {
            "prompt": f"Can you count to {n}?",
            "chosen": f"{GOOD[n % 3]}, {n}",
            "rejected": f"{BAD[n // 3 % 3]}, {n}",
            "margin": 0.5 if n % 2 else None,
        }
        for n in range(96)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))


def _plain_margin(model: Path, rows: Path) -> tuple[float, float]:
    """Accuracy and mean difference of scores of the held-out pairs, by transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    assert classifier.config.num_labels == 1
    RANKINGS.path = str(rows)
    with torch.no_grad():
        differences = [
            torch.sub(
                *(
                    classifier(answer.token_ids[None][:, : int(answer.loss_mask.nonzero()[-1]) + 1])
                    .logits[0, 0]
                    .double()
                    for answer in ranking.answers
                )
            )
            for ranking in load_rankings(RANKINGS, tokenizer, seed=0).held_out
        ]
    stacked = torch.stack(differences)
    assert stacked.shape[0] > 10
    return float((stacked > 0).double().mean()), float(stacked.mean())


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_held_out_preferences_are_predicted(make_run, tmp_path):
    rows = tmp_path / "preferences.jsonl"
    _write_preferences(rows)
    run = make_run(
        "stage=reward_model",
        f"examples.path={rows}",
        f"examples.eval_share={RANKINGS.eval_share}",
        f"examples.max_tokens={RANKINGS.max_tokens}",
        "fit.batch_size=16",
        "fit.num_epochs=6",
        "fit.eval_every=6",
        "training.num_ranks=2",
        "training.zero_stage=3",
    ).succeed()
    summary = json.loads((run.output / "summary.json").read_text())
    assert summary["eval_before"]["accuracy"] == 0.5
    assert summary["eval_after"]["accuracy"] >= 0.9
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]
    assert set(summary["eval_after"]) == {"loss", "accuracy", "margin", "calibration_error"}
    assert "held-out accuracy" in run.text
    accuracy, margin = _plain_margin(run.output / "model", rows)
    assert accuracy == pytest.approx(summary["eval_after"]["accuracy"])
    assert margin == pytest.approx(summary["eval_after"]["margin"], abs=1e-5)
    assert read_normalization(run.output / "model").standard_deviation > 0
