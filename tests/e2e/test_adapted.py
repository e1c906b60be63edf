"""Runs of the command that train an adapter: what they publish, and what they leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.e2e.run_command import Run

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]
LORA = ("training.lora.r=4", "training.lora.alpha=8", "training.learning_rate=1e-2")
KL = ("algorithm.kl_coefficient=0.05", "num_steps=3", "checkpoint.every_steps=2")


def state_of(folder: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def check_result(run: Run, base: Path) -> None:
    """Merged layers moved and nothing else; base and adapter together say what the model says."""
    start, end = state_of(base), state_of(run.output / "model")
    moved = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert moved == {name for name in end if name.endswith("_proj.weight")}
    merged = AutoModelForCausalLM.from_pretrained(run.output / "model", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, str(run.output / "adapter"))
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = merged(input_ids=tokens).logits
        torch.testing.assert_close(adapted(input_ids=tokens).logits, expected, rtol=0, atol=1e-4)
    assert not (run.output / "model" / "adapter").exists()


def test_demonstrations(make_run, tiny_model):
    run = make_run(
        "stage=sft",
        "examples.path=rlhf_ray.data.builtin:arithmetic",
        "examples.eval_share=0.2",
        "fit.max_steps=6",
        "training.zero_stage=2",
        *LORA,
    ).succeed()
    metrics = run.metrics()
    assert metrics[-1]["eval/loss"] < metrics[0]["eval/loss"]
    check_result(run, tiny_model)


@pytest.mark.parametrize("published", ["merged", "adapter"])
def test_rewards(make_run, tiny_model, published):
    """No reference is started, the gate lets every publish through, and a resume goes on."""
    options = (*LORA, *KL, f"publish.lora={published}")
    run = make_run(*options)
    run.wait_for_step(1)
    assert not [p for p in run.descendants() if "ray::Reference" in " ".join(p.cmdline())]
    run.succeed()
    metrics = run.metrics()
    assert [row["publish/version"] for row in metrics] == [1, 2, 3]
    for row in metrics:
        assert row["publish/probe_gap_max"] < 1e-3
        assert row["rollout/logprob_gap_max"] < 1e-3
    # Before the first step the policy is its own reference.
    assert abs(metrics[0]["kl/reference"]) < 1e-6 < abs(metrics[2]["kl/reference"])
    assert {v for row in run.rollouts(3) for v, _ in row["weight_versions"]} == {2}
    check_result(run, tiny_model)
    again = make_run(*options, f"resume={run.output}/checkpoints/step_000002", output="again")
    again.succeed()
    (last,) = again.metrics()
    same = ("reward/mean", "kl/reference", "policy/loss", "rollout/logprob_gap_max")
    assert [last[name] for name in same] == [metrics[2][name] for name in same]
    other = make_run(*KL, f"resume={run.output}/checkpoints/step_000002", output="other")
    assert other.wait(240) == 2
    assert "training.lora=" in other.text


def test_layers_that_the_model_does_not_have(make_run):
    """Refused by the model's configuration, before a worker starts."""
    for option, message in (
        ("training.lora.target_modules=[query]", "training.lora.target_modules=['query']"),
        ("training.freeze=[lm_head.bias]", "training.freeze=lm_head.bias: the model has no"),
        ("training.freeze_layers=99", "training.freeze_layers=99: the model has"),
    ):
        on = ("training.lora.r=4",) if "lora" in option else ()
        run = make_run(option, *on)
        assert run.wait(240) == 2
        assert message in run.text
        assert "Traceback" not in run.text
