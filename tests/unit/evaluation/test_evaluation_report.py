"""evaluation.json, table and samples from hand-made groups."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from rlhf_ray.evaluation.answers import MeasureSettings, measure, measure_answers
from rlhf_ray.evaluation.evaluation_report import (
    Likelihood,
    ModelAnswers,
    ReportSettings,
    describe_models,
)
from rlhf_ray.evaluation.files import sample_rows, write_report, write_samples
from rlhf_ray.evaluation.table import side_by_side
from rlhf_ray.evaluation.training_metrics import flat_metrics
from rlhf_ray.observe.figures import MODEL_FIGURES
from rlhf_ray.records import TokenValues
from rlhf_ray.testing.fakes import make_group, make_prompt

EXAMINE = MeasureSettings(greedy_from=2, kl_estimator="k1", ngram=1, with_text=True)
REPORT = ReportSettings(
    pass_at_k=(1, 2),
    success_by="reward",
    success_reward=1.0,
    win_by="reward",
    confidence=0.95,
    num_resamples=0,
    kl="k1",
    ngram=1,
    seed=0,
)


def group(index: int, rewards: list[float]):
    """Samples 0 and 1, and a greedy answer."""
    return make_group(make_prompt(index), (0, 1, 2), version=0, rewards=rewards)


def answers_of(*rewards: list[float], reference: float | None = None, settings=EXAMINE):
    groups = [group(index, own) for index, own in enumerate(rewards)]
    values = [
        TokenValues(prompt_id=g.prompt.prompt_id, values=reference * g.loss_mask.float())
        for g in groups
        if reference is not None
    ]
    # In another order than the groups: they belong together by their prompts.
    return tuple(measure_answers(groups, values[::-1], settings))


def model(name: str, *rewards: list[float], **kwargs) -> ModelAnswers:
    return ModelAnswers(
        name=name,
        path=f"/models/{name}",
        prompts=answers_of(*rewards, **kwargs),
        failures=(),
        likelihood=None,
        standard_tasks={},
    )


def report_of(*models: ModelAnswers, settings: ReportSettings = REPORT):
    return describe_models(models, baseline=models[0].name, settings=settings)


def test_a_measured_group_has_its_answers_by_mode():
    (prompt,) = answers_of([1.0, 0.0, 0.5], reference=-0.75)
    assert [a.reward for a in prompt.answers["sampled"]] == [1.0, 0.0]
    assert [a.text for a in prompt.answers["greedy"]] == ["sample 2"]
    assert [a.num_tokens for a in prompt.answers["sampled"]] == [2, 2]
    # Two tokens of log-probability -0.5, and -0.75 under the reference.
    assert [a.kl for a in prompt.answers["sampled"]] == [pytest.approx(0.5)] * 2
    assert prompt.answers["greedy"][0].kl is None
    # 10, 0 and 11, 0: three distinct tokens of four.
    assert prompt.distinct["sampled"][0] == pytest.approx(3 / 4)


def test_every_figure_that_a_pipeline_may_report_is_there():
    (described,) = report_of(model("a", [1.0, 0.0, 0.5]))["models"].values()
    assert set(described) - {"path", "first_failure"} == set(MODEL_FIGURES)


def test_k3_and_no_estimator():
    k3 = dataclasses.replace(EXAMINE, kl_estimator="k3")
    (prompt,) = answers_of([1.0, 0.0, 0.5], reference=-0.75, settings=k3)
    expected = 2 * (math.exp(-0.25) - 1 + 0.25)
    assert prompt.answers["sampled"][0].kl == pytest.approx(expected)
    none = dataclasses.replace(EXAMINE, kl_estimator="none")
    (prompt,) = answers_of([1.0, 0.0, 0.5], reference=-0.75, settings=none)
    assert prompt.answers["sampled"][0].kl is None


def test_repetition_is_of_sampled_tokens():
    repeating = group(0, [0.0, 0.0, 0.0])
    tokens = repeating.token_ids.clone()
    tokens[2:4] = 7
    repeating = dataclasses.replace(repeating, token_ids=tokens)
    first, second = measure(repeating, None, EXAMINE).answers["sampled"]
    # The prompt's own tokens, 1 and 2, are no part of it.
    assert (first.repeated, second.repeated) == (pytest.approx(0.5), 0.0)


def test_texts_are_kept_only_where_they_are_wanted():
    silent = dataclasses.replace(EXAMINE, with_text=False)
    (prompt,) = answers_of([1.0, 0.0, 0.5], settings=silent)
    assert prompt.prompt == ""
    assert prompt.answers["greedy"][0].text == ""


def test_rewards_success_and_pass_at_k_by_hand():
    described = report_of(model("a", [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]))["models"]["a"]
    sampled, greedy = described["sampled"], described["greedy"]
    # Prompt means 0.5 and 0, whose standard deviation is 0.5 / sqrt(2).
    assert sampled["reward"]["mean"] == pytest.approx(0.25)
    assert sampled["reward"]["standard_error"] == pytest.approx(0.25)
    assert sampled["reward_parts"]["fake"]["mean"] == pytest.approx(0.25)
    assert sampled["pass_at_k"]["1"]["mean"] == pytest.approx(0.25)
    assert sampled["pass_at_k"]["2"]["mean"] == pytest.approx(0.5)
    assert greedy["success_share"]["mean"] == pytest.approx(0.5)
    assert greedy["pass_at_k"] == {}
    assert (greedy["num_prompts"], sampled["num_answers"]) == (2, 4)
    assert described["kl"] is None
    assert described["perplexity"] is None


def test_tasks_are_told_apart():
    both = answers_of([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    named = (dataclasses.replace(both[0], source="sums"), both[1])
    found = report_of(dataclasses.replace(model("a"), prompts=named))["models"]["a"]
    assert found["greedy"]["tasks"]["sums"]["mean"] == 1.0
    assert found["greedy"]["tasks"]["fake"]["mean"] == 0.0
    assert flat_metrics(named, REPORT, prefix="e")["e/greedy/reward/mean/sums"] == 1.0


def test_wins_are_counted_prompt_by_prompt():
    base = model("base", [0.0, 1.0, 0.5], [0.0, 0.0, 0.5])
    other = model("other", [1.0, 1.0, 0.5], [0.0, 0.0, 0.0])
    report = report_of(base, other)
    assert report["models"]["base"]["greedy"]["win_rate"] is None
    found = report["models"]["other"]
    # A tie and a loss.
    assert found["greedy"]["win_rate"]["mean"] == pytest.approx(0.25)
    # (1, 1, .5, .5) / 4 on the first prompt, all ties on the second.
    assert found["sampled"]["win_rate"]["mean"] == pytest.approx((0.75 + 0.5) / 2)
    assert found["greedy"]["win_rate"]["num_prompts"] == 2


def test_wins_are_over_prompts_that_both_have_answered():
    base = model("base", [0.0, 0.0, 0.0], [9.0, 9.0, 9.0])
    other = model("other", [1.0, 1.0, 1.0])
    win = report_of(base, other)["models"]["other"]["greedy"]["win_rate"]
    assert win == {"mean": 1.0, "low": None, "high": None, "num_prompts": 1}


def test_wins_by_a_part_of_the_reward():
    base, other = model("base", [0.0, 0.0, 0.0]), model("other", [1.0, 1.0, 1.0])
    worse = dataclasses.replace(other.prompts[0].answers["greedy"][0], parts={"fake": -1.0})
    prompt = dataclasses.replace(other.prompts[0], answers={"greedy": (worse,)})
    other = dataclasses.replace(other, prompts=(prompt,))
    by_part = dataclasses.replace(REPORT, win_by="fake")
    assert report_of(base, other)["models"]["other"]["greedy"]["win_rate"]["mean"] == 1.0
    found = report_of(base, other, settings=by_part)["models"]["other"]
    assert found["greedy"]["win_rate"]["mean"] == 0.0


def test_kl_and_perplexity():
    found = dataclasses.replace(
        model("a", [1.0, 0.0, 0.5], [1.0, 0.0, 0.5], reference=-0.75),
        likelihood=Likelihood(num_examples=2, num_tokens=4, total_nats=4 * math.log(3)),
    )
    described = report_of(found)["models"]["a"]
    assert described["kl"]["per_token"] == pytest.approx(0.25)
    assert described["kl"]["per_answer"]["mean"] == pytest.approx(0.5)
    assert described["perplexity"]["value"] == pytest.approx(3)
    assert flat_metrics(found.prompts, REPORT, prefix="e")["e/kl/reference"] == pytest.approx(0.25)


def test_metrics_of_a_step():
    metrics = flat_metrics(answers_of([1.0, 0.0, 1.0]), REPORT, prefix="evaluation")
    assert metrics["evaluation/greedy/reward/mean"] == 1.0
    assert metrics["evaluation/sampled/pass_at_2"] == 1.0
    assert metrics["evaluation/sampled/reward/fake"] == 0.5
    assert math.isnan(metrics["evaluation/greedy/reward/standard_error"])
    assert metrics["evaluation/greedy/response/length_mean"] == 2


def test_the_files_and_the_table(tmp_path):
    base = model("base", [0.0, 1.0, 0.5], [0.0, 0.0, 0.5], reference=-0.75)
    other = dataclasses.replace(
        model("o|ther", [1.0, 1.0, 0.5], reference=-0.5), failures=("prompt e0-r1: lost",)
    )
    report = report_of(base, other)
    table = side_by_side(report)
    write_report(tmp_path, report, table)
    write_samples(tmp_path, [base, other])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "base (baseline)" in lines[0]
    assert r"o\|ther" in lines[0]
    wins = next(line for line in lines if "greedy: wins" in line)
    assert [cell.strip() for cell in wins.split("|")[2:4]] == ["-", "0.5"]
    assert any("pass@2" in line for line in lines)
    assert not any("perplexity" in line for line in lines)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert rows == list(sample_rows([base, other]))
    assert [row["prompt_id"] for row in rows] == ["e0-r0", "e0-r1"]
    assert rows[0]["answers"]["o|ther"]["sampled"][1]["reward"] == 1.0
    assert rows[1]["answers"]["o|ther"] is None


def test_standard_tasks_are_rows_of_the_table():
    metrics = {"acc": {"mean": 0.5, "standard_error": 0.125}}
    task = {"sums": {"num_samples": 16, "num_fewshot": 0, "metrics": metrics}}
    base = model("base", [0.0, 0.0, 0.0])
    other = dataclasses.replace(model("other", [0.0, 0.0, 0.0]), standard_tasks=task)
    report = report_of(base, other)
    assert report["models"]["base"]["lm_eval"] == {}
    assert report["models"]["other"]["lm_eval"] == task
    (row,) = [line for line in side_by_side(report).splitlines() if "lm-eval sums: acc" in line]
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["-", "0.5 ± 0.12"]
