"""Held-out prompts while a policy is trained, on the real stack."""

from __future__ import annotations

import json
import math

import pytest

from tests.e2e.run_command import without_times

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.slow]

# Longer than a block of the engine's cache, so that prompts share some of it.
SYSTEM = "Answer the question, and say nothing else, for nobody asks for more than that. " * 3
TRAINING = (
    "num_steps=4",
    "checkpoint.every_steps=2",
    "training.ema_decay=0.9",
    "algorithm.kl_coefficient=0.05",
    f"data.system_prompt='{SYSTEM}'",
    "data.max_prompt_tokens=280",
)


def answers_of_transformers(folder, prompts: list[str]) -> list[str]:
    """Greedy, of the model as it was written."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    answers = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        found = model.generate(
            **inputs,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        new = found[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


def test_a_run_with_held_out_prompts(make_run, tmp_path):
    rows = [{"prompt": f"Which of the {n} is it?", "answer": "x"} for n in range(6)]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated = (
        *TRAINING,
        f"evaluation.path={held_out}",
        "evaluation.every=2",
        # More than a group of training has.
        "evaluation.samples=5",
        "evaluation.pass_at_k=[1,5]",
        "evaluation.success_reward=0.5",
        "evaluation.kl=k3",
        "evaluation.best_metric=evaluation/sampled/reward/mean",
    )
    run = make_run(*evaluated, output="straight").succeed(400)
    metrics = run.metrics()
    with_evaluation = [row["step"] for row in metrics if "evaluation/greedy/reward/mean" in row]
    assert with_evaluation == [2, 4]
    last = metrics[-1]
    names = [name for name in last if name.startswith("evaluation/")]
    assert all(math.isfinite(last[name]) for name in names)
    assert last["evaluation/kl/reference"] > 1e-6
    assert last["evaluation/sampled/pass_at_5"] >= last["evaluation/sampled/pass_at_1"]
    assert last["evaluation/failed_prompts"] == 0
    _the_best_model_is_there(run, metrics)
    _the_engines_had_both_policies(run, last)

    # From the first evaluation on: the same numbers, the best model included.
    resumed = make_run(
        *evaluated, f"resume={run.output / 'checkpoints' / 'step_000002'}", output="resumed"
    ).succeed(400)
    assert without_times(resumed.metrics()) == without_times(metrics[2:])
    assert (resumed.output / "best.json").is_file()
    best = int(last["evaluation/best_step"])
    assert (resumed.output / "best" / f"step_{best:06}" / "config.json").is_file()

    # What is looked at in between changes nothing of the training.
    plain = make_run(*TRAINING, output="plain").succeed(400)
    trained = [
        {name: value for name, value in row.items() if not name.startswith("evaluation/")}
        for row in without_times(metrics)
    ]
    assert without_times(plain.metrics()) == trained


def _the_best_model_is_there(run, metrics) -> None:
    name = "evaluation/sampled/reward/mean"
    values = {row["step"]: row[name] for row in metrics if name in row}
    best = max(values, key=lambda step: (values[step], -step))
    note = json.loads((run.output / "best.json").read_text())
    assert (note["step"], note["metric"], note["value"]) == (best, name, values[best])
    assert metrics[-1]["evaluation/best_step"] == best
    assert note["folder"] == str(run.output / "best" / f"step_{best:06}")


def _the_engines_had_both_policies(run, last) -> None:
    """Greedy answers are those of the saved models, by transformers."""
    said = {}
    for name, folder in (("step_000004", "model"), ("step_000004_ema", "model_ema")):
        lines = (run.output / "evaluation" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 6 * 6
        greedy = [row for row in rows if row["sample_index"] == 5]
        expected = answers_of_transformers(run.output / folder, [r["prompt"] for r in greedy])
        assert [row["response"] for row in greedy] == expected
        said[name] = [row["response"] for row in rows]
    first, second = said.values()
    assert first != second
    assert "evaluation/ema/sampled/reward/mean" in last
