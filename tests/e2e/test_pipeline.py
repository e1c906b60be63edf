"""The pipeline of all stages, on the real stack: the policy ends up where people want it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.run_command import REPOSITORY

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.stack,
    pytest.mark.timeout(1800),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_policy_learns_what_people_prefer(tmp_path, seed):
    output = tmp_path / "pipeline"
    command = [sys.executable, "-m", "rlhf_ray.main", "recipe=pipeline_demo", f"seed={seed}"]
    done = subprocess.run(
        [*command, f"output_dir={output}"],
        capture_output=True,
        text=True,
        timeout=1700,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["perplexity_after"] < summary["perplexity_before"]
    assert summary["reward_model_accuracy"] >= 0.95
    assert summary["preferred_before"] <= 0.65
    assert summary["preferred_after"] >= 0.85
    assert summary["well_formed_after"] >= 0.85
    assert summary["kl_to_reference"] < 5
    assert "preferred after" in done.stdout
    dpo = json.loads((output / "preference" / "summary.json").read_text())
    assert dpo["eval_after"]["accuracy"] > dpo["eval_before"]["accuracy"]
