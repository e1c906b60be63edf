"""The stages that learn from examples, as commands: what they learn, and what they resume."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.run_command import Run, without_times

pytestmark = pytest.mark.stack
SFT = (
    "stage=sft",
    "examples.path=rlhf_ray.data.builtin:arithmetic",
    "examples.eval_share=0.2",
    "fit.batch_size=16",
    "fit.num_epochs=4",
    "fit.eval_every=5",
    "checkpoint.every_steps=4",
)


def _summary(run: Run) -> dict[str, float]:
    return json.loads((run.output / "summary.json").read_text())


def _loads_and_answers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer)
    )
    inputs = tokenizer("What is 3+4?", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_demonstrations_lower_the_held_out_perplexity(make_run):
    run = make_run(*SFT, "training.num_ranks=2", "training.zero_stage=2")
    run.wait_for_step(1)
    run.descendants()
    run.succeed()
    assert run.survivors() == []
    summary, metrics = _summary(run), run.metrics()
    assert [row["step"] for row in metrics] == list(range(summary["num_steps"] + 1))
    assert summary["perplexity_before"] == metrics[0]["eval/perplexity"]
    assert summary["perplexity_after"] < 0.3 * summary["perplexity_before"]
    assert summary["loss_last"] < summary["loss_first"]
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "tokens/trained"} < set(
        metrics[1]
    )
    assert "held-out perplexity" in run.text
    assert f"Result: {run.output / 'model'}" in run.text
    assert list((run.output / "tensorboard").iterdir())
    _loads_and_answers(run.output / "model")


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_killed_and_resumed_equals_uninterrupted(make_run):
    straight = make_run(*SFT, output="straight").succeed()
    killed = make_run(*SFT, output="resumed")
    killed.wait_for_step(6)
    killed.descendants()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(10)
    assert (killed.output / "checkpoints" / "step_000004" / "COMMITTED").is_file()
    resumed = make_run(*SFT, output="resumed").succeed()
    assert "resumed after step 4" in resumed.text
    assert without_times(resumed.metrics()) == without_times(straight.metrics())
    same = ("loss_first", "loss_last", "perplexity_before", "perplexity_after", "best_step")
    assert [_summary(resumed)[key] for key in same] == [_summary(straight)[key] for key in same]
    other = make_run(*SFT, "seed=3", output="resumed")
    assert other.wait(240) == 2
    assert "seed=0 there, 3 here" in other.text


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_pre_training_from_random_weights_then_fine_tuning(make_run, tmp_path):
    rows = [json.dumps({"text": f"{a} and {a + 1} are {2 * a + 1}."}) for a in range(64)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    pretrained = make_run(
        "stage=pretrain",
        f"examples.path={tmp_path / 'texts.jsonl'}",
        "examples.max_tokens=32",
        "examples.eval_share=0.2",
        "model.random_weights=true",
        "fit.batch_size=4",
        "fit.num_epochs=20",
        "fit.eval_every=2",
        "fit.patience=2",
        "fit.min_improvement=0.01",
        "training.zero_stage=3",
        output="pretrained",
    ).succeed()
    before = _summary(pretrained)
    assert before["perplexity_after"] < 0.3 * before["perplexity_before"]
    model = f"model.path={pretrained.output / 'model'}"
    tuned = make_run(*SFT, model, "fit.max_steps=3", output="tuned").succeed()
    assert _summary(tuned)["num_steps"] == 3
    _loads_and_answers(tuned.output / "model")
