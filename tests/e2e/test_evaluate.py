"""stage=evaluate on the real stack: two models with a known answer each, side by side."""

from __future__ import annotations

import json
import math

import pytest

from rlhf_ray.testing.tiny import tiny_that_says

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.slow]

SUMS = [(a, b) for a in range(1, 7) for b in range(1, 3)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "eight": tiny_that_says(folder / "eight", "8"),
        "seven": tiny_that_says(folder / "seven", "7"),
    }


def _write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_two_models_side_by_side(make_run, models, tmp_path):
    rows = [{"prompt": f"What is {a}+{b}?", "answer": str(a + b)} for a, b in SUMS]
    held_out = _write_rows(tmp_path / "held_out.jsonl", rows)
    shown = [{"prompt": "What is 3+4?", "answer": "7"}] * 3
    demonstrations = _write_rows(tmp_path / "demonstrations.jsonl", shown)
    run = make_run(
        "stage=evaluate",
        *(f"evaluation.models.{name}={path}" for name, path in models.items()),
        "evaluation.baseline=eight",
        f"evaluation.path={held_out}",
        "reward.functions=[exact_match]",
        "data.answer_column=answer",
        "evaluation.samples=3",
        "evaluation.pass_at_k=[1,3]",
        "evaluation.kl=k3",
        f"reference.path={models['eight']}",
        f"examples.eval_path={demonstrations}",
        "examples.max_tokens=64",
        "generation.temperature=0.05",
    ).succeed(600)
    report = json.loads((run.output / "evaluation.json").read_text())
    assert list(report["models"]) == ["eight", "seven"]
    assert report["prompts"]["num_prompts"] == len(SUMS)
    right = {
        name: sum(a + b == value for a, b in SUMS) / len(SUMS)
        for name, value in (("eight", 8), ("seven", 7))
    }
    assert 0 < right["eight"] < right["seven"]
    for name, share in right.items():
        for mode in ("greedy", "sampled"):
            found = report["models"][name][mode]
            assert found["reward"]["mean"] == pytest.approx(share)
            assert found["reward_parts"]["exact_match"]["mean"] == pytest.approx(share)
            # The digit and the end of text.
            assert found["length"]["mean"] == 2
            assert found["truncated_share"] == 0
        passed = report["models"][name]["sampled"]["pass_at_k"]
        assert passed["3"]["mean"] == pytest.approx(share)
    # They are never right together.
    expected = 0.5 + (right["seven"] - right["eight"]) / 2
    wins = report["models"]["seven"]["greedy"]["win_rate"]
    assert wins["mean"] == pytest.approx(expected)
    assert wins["low"] <= expected <= wins["high"]
    assert report["models"]["eight"]["greedy"]["win_rate"] is None
    kl = {name: report["models"][name]["kl"]["per_token"] for name in models}
    assert kl["eight"] == pytest.approx(0, abs=1e-4)
    assert kl["seven"] > 1
    perplexity = {name: report["models"][name]["perplexity"]["value"] for name in models}
    assert 1 < perplexity["seven"] < perplexity["eight"] < math.inf

    samples = [json.loads(line) for line in (run.output / "samples.jsonl").open()]
    assert [row["prompt"] for row in samples] == [f"<user>{r['prompt']}<assistant>" for r in rows]
    answers = samples[0]["answers"]
    assert [answer["text"] for answer in answers["seven"]["sampled"]] == ["7"] * 3
    assert [answer["text"] for answer in answers["eight"]["greedy"]] == ["8"]
    table = (run.output / "table.md").read_text()
    assert "eight (baseline)" in table
    assert table.strip() in run.text
