"""Real runs over checkpoints that were damaged, or in which someone has put code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.hostile_files import write_hostile_file

pytestmark = pytest.mark.stack
SFT = (
    "stage=sft",
    "examples.path=rlhf_ray.data.builtin:arithmetic",
    "examples.limit=64",
    "fit.batch_size=8",
    "training.num_ranks=2",
    "training.zero_stage=2",
    "checkpoint.every_steps=2",
)
SHARD = "learner/state_rank_00001_0000.safetensors"
WEIGHTS = "learner/state_rank_00000_0000.safetensors"
RANDOM = "learner/random_rank_00000.pt"
# A run takes half a minute on a machine that has nothing else to do.
PATIENCE_S = 600


@pytest.mark.nightly
@pytest.mark.timeout(4 * PATIENCE_S)
def test_the_newest_whole_checkpoint_is_taken_and_no_code_runs(make_run, tmp_path: Path):
    first = make_run(*SFT, "fit.max_steps=4").succeed(PATIENCE_S)
    older, newest = (first.output / "checkpoints" / f"step_00000{step}" for step in (2, 4))
    manifest = json.loads((newest / "manifest.json").read_text())["files"]
    assert {SHARD, WEIGHTS, "run.json", "learner/role.json"} < set(manifest)
    content = bytearray((newest / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / SHARD).write_bytes(content)

    resumed = make_run(*SFT, "fit.max_steps=6").succeed(PATIENCE_S)
    text = " ".join(resumed.text.split())
    assert "changed since the checkpoint: fit.max_steps: 4 -> 6" in text
    assert f"passed over: the checkpoint {newest} is damaged: {SHARD} has changed" in text
    assert f"resumed after step 2 from {older}" in text
    assert [row["step"] for row in resumed.metrics()] == [0, 1, 2, 3, 4, 5, 6]
    names = sorted(path.name for path in (first.output / "checkpoints").iterdir())
    assert names == ["step_000004", "step_000006"]

    # An earlier release wrote no manifest, so that nothing but the reader stands in the way.
    poisoned, ran = first.output / "checkpoints" / "step_000006", tmp_path / "ran"
    (poisoned / "COMMITTED").write_text("")
    (poisoned / "manifest.json").unlink()
    write_hostile_file(poisoned / RANDOM, f"touch {ran}")
    refused = make_run(*SFT, "fit.max_steps=8")
    assert refused.wait(PATIENCE_S) == 1
    assert f"{poisoned / RANDOM} is not plain data" in refused.text
    assert "posix.system, which could run code" in refused.text
    assert not ran.exists()
