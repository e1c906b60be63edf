"""The service as a Ray job: found by its file, and gone with the job."""

from __future__ import annotations

import subprocess
from pathlib import Path

import openai
import psutil
import pytest

from tests.e2e.ray_head import SCRIPTS, RayHead
from tests.e2e.run_command import REPOSITORY
from tests.e2e.served import GREEDY, Facts, lives, user

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600), pytest.mark.nightly]


@pytest.fixture
def head():
    cluster = RayHead()
    try:
        cluster.wait()
        yield cluster
    finally:
        left = cluster.end()
    assert left == [], "processes outlived the cluster"


def ray_job(head: RayHead, *words: str) -> str:
    done = subprocess.run(
        [str(SCRIPTS / "ray"), "job", *words],
        env=head.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job(head, tmp_path: Path):
    output = tmp_path / "out"
    command = [
        *("python", "-m", "rlhf_ray.main", "stage=serve", "model.path=builtin:arithmetic"),
        *("serve.port=0", "generation=cpu", "generation.kv_cache_gib=0.1"),
        *("generation.max_num_seqs=32", f"output_dir={output}"),
    ]
    ray_job(head, "submit", "--submission-id", "served", "--no-wait", "--", *command)

    def look() -> str:
        head.remember_processes()
        return "the job has not said where it is"

    facts = Facts(output).wait(look)
    family = psutil.Process(facts["pid"]).children(recursive=True)
    assert len(family) >= 2
    with openai.OpenAI(base_url=facts["url"], api_key="none", max_retries=0) as client:
        reply = client.chat.completions.create(
            model="arithmetic", messages=user("What is 3+4?"), **GREEDY
        )
    assert reply.choices[0].message.content == "7"

    ray_job(head, "stop", "served")
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [process for process in alive if lives(process)] == []
