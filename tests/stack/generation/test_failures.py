"""What goes wrong with requests and engines ends as a typed failure, in time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation import requirements
from rlhf_ray.generation.engine import GenerationEngine
from rlhf_ray.generation.errors import EngineLost
from rlhf_ray.publish.gate import FidelityError
from rlhf_ray.records import FailureKind
from tests.stack.generation.harness import (
    MAX_SEQUENCE_TOKENS,
    StartedEngine,
    generation_config,
    make_prompt,
)

pytestmark = pytest.mark.stack
REPOSITORY = Path(__file__).parents[3]


def test_a_request_that_vllm_refuses_is_a_failure_of_its_samples(engine):
    too_long = make_prompt(0, num_tokens=MAX_SEQUENCE_TOKENS + 1)
    group, failures = engine.run(engine.engine.generate(too_long, (0, 3)))
    assert group.num_samples == 0
    assert group.failures == failures
    assert [failure.sample_index for failure in failures] == [0, 3]
    for failure in failures:
        assert failure.kind is FailureKind.GENERATION_ERROR
        assert str(MAX_SEQUENCE_TOKENS) in failure.message
    # The engine itself is well.
    engine.generate(make_prompt(0))


def test_a_request_without_an_end_is_a_failure_in_time(engine):
    """An engine that stands still does not answer; the samples fail, and nothing of them stays."""

    async def scenario():
        # Not by `begin_update`: the time of a publish does not count.
        await engine.engine._llm.pause_generation(mode="keep")
        started = time.monotonic()
        (group, failures), refusal = await asyncio.gather(
            engine.engine.generate(make_prompt(0), (0, 1)),
            engine.engine.score_sequences([(5, 6)]),
            return_exceptions=True,
        )
        elapsed = time.monotonic() - started
        await engine.engine._llm.resume_generation()
        return group, failures, refusal, elapsed

    with engine.time_limit(6):
        group, failures, refusal, elapsed = engine.run(scenario())
    assert group.num_samples == 0
    assert [failure.kind for failure in failures] == [FailureKind.GENERATION_TIMEOUT] * 2
    assert "6 s" in failures[0].message
    assert isinstance(refusal, RunFailed)
    assert "a sequence of 2 tokens was not scored within 6 s" in str(refusal)
    assert 6 <= elapsed < 8
    assert engine.engine._llm.get_num_unfinished_requests() == 0
    engine.generate(make_prompt(0))


def test_a_sequence_that_is_too_long_for_the_engine_is_not_scored(engine):
    with pytest.raises(RunFailed, match="1001 tokens was not scored"):
        engine.run(engine.engine.score_sequences([tuple([5] * (MAX_SEQUENCE_TOKENS + 1))]))


def vllm_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "VLLM" in " ".join(child.cmdline())]


def test_a_second_engine_gives_the_same_bits_dies_and_leaves_nothing(engine, folders):
    """One start for three things, because a start is long."""
    prompts = [make_prompt(number) for number in range(4)]
    before = {process.pid for process in vllm_processes()}
    second = StartedEngine(folders["tied0"])
    (core,) = [process for process in vllm_processes() if process.pid not in before]
    expected, groups = engine.generate(*prompts), second.generate(*prompts)
    for group, other in zip(expected, groups, strict=True):
        assert torch.equal(group.token_ids, other.token_ids)
        assert torch.equal(group.generator_logprobs, other.generator_logprobs)

    async def scenario() -> float:
        await second.engine.check()
        running = asyncio.create_task(second.engine.generate(prompts[0], (0,)))
        await asyncio.sleep(0.3)
        assert not running.done()
        core.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(EngineLost, match="generator 0: its vLLM engine process has ended"):
            await running
        return time.monotonic() - killed

    with second.changed(max_response_tokens=900, ignore_eos=True):
        assert second.run(scenario()) < 3
    with pytest.raises(EngineLost):
        second.run(second.engine.check())
    with pytest.raises(EngineLost):
        second.run(second.engine.generate(prompts[0], (0,)))
    with pytest.raises(EngineLost):
        second.run(second.engine.begin_update())
    second.close()
    assert {process.pid for process in vllm_processes()} == before


def test_what_a_dead_engine_has_taken_on_is_not_waited_for(folders):
    """vLLM never answers a call that its process had when it died."""
    before = {process.pid for process in vllm_processes()}
    started = StartedEngine(folders["tied0"])
    (core,) = [process for process in vllm_processes() if process.pid not in before]
    engine = started.engine

    async def scenario() -> tuple[list[object], float]:
        core.send_signal(signal.SIGSTOP)
        waiting = [
            asyncio.create_task(engine.generate(make_prompt(0), (0, 1))),
            asyncio.create_task(engine.generate(make_prompt(1), (0, 1), together=2)),
            asyncio.create_task(engine.score_sequences([(5, 6, 7)])),
            asyncio.create_task(engine.weight_version()),
            asyncio.create_task(engine.begin_update()),
        ]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        core.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        ended = asyncio.gather(*waiting, return_exceptions=True)
        return await asyncio.wait_for(ended, timeout=20), time.monotonic() - killed

    errors, elapsed = started.run(scenario())
    assert [type(error) for error in errors] == [EngineLost] * 5
    assert elapsed < 4
    started.close()


# An engine in a process of its own, which then closes it or is killed.
OWNER = """
import asyncio, os, signal, sys
from pathlib import Path
import psutil
from tests.stack.generation.harness import StartedEngine

def main():
    engine = StartedEngine(Path(sys.argv[1]))
    children = psutil.Process().children(recursive=True)
    print("PIDS", *[child.pid for child in children], flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    engine.close()

if __name__ == "__main__":
    main()
"""


@pytest.mark.nightly
@pytest.mark.parametrize(("how", "status"), [("close", 0), ("kill", -signal.SIGKILL)])
def test_no_process_outlives_its_owner(folders, tmp_path, how, status):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    owner = subprocess.run(
        [sys.executable, str(script), str(folders["tied0"]), how],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert owner.returncode == status, owner.stderr
    pids = [int(word) for word in owner.stdout.split("PIDS")[1].split()]
    assert pids
    deadline = time.monotonic() + 15
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.nightly
def test_two_ranks_publish_and_score(folders, models):
    engine = StartedEngine(folders["tied0"], tensor_parallel_size=2)
    try:
        engine.prove(models["tied0"])
        engine.run(engine.update(models["tied1"]))
        engine.prove(models["tied1"])
        with pytest.raises(FidelityError):
            engine.prove(models["tied0"])
    finally:
        engine.close()


@pytest.mark.nightly
def test_low_precision_publishes_within_its_rounding(folders, models):
    engine = StartedEngine(folders["tied0"], dtype="bfloat16")
    try:
        engine.run(engine.update(models["tied1"]))
        assert engine.prove(models["tied1"], tolerance=0.05) > 1e-4
    finally:
        engine.close()


def start_with(folder, **settings) -> None:
    engine = GenerationEngine(
        generation=generation_config(**settings),
        model=ModelConfig(path=str(folder)),
        engine_index=0,
        max_sequence_tokens=MAX_SEQUENCE_TOKENS,
        greedy_from=1_000,
        request_timeout_s=1.0,
    )
    asyncio.run(engine.start())


def test_an_engine_argument_that_vllm_does_not_have_is_refused(folders):
    with pytest.raises(RequestError, match=r"no engine argument 'blocksize'.* block_size"):
        start_with(folders["tied0"], extra_engine_args={"blocksize": 64})


def test_settings_that_vllm_refuses_are_refused_in_its_words(folders):
    with pytest.raises(RequestError, match="vLLM refuses the settings of generation and model"):
        start_with(folders["tied0"], extra_engine_args={"max_model_len": 10_000_000})


def test_what_this_vllm_lacks_is_said_by_name(monkeypatch):
    requirements.check_vllm(serves=True)
    needs = (
        ("vllm.v1.engine.async_llm:AsyncLLM.pause_generation", ("mode", "softly")),
        ("vllm.v1.engine.async_llm:AsyncLLM.rewind", ()),
        ("vllm.no_such_module:anything", ()),
    )
    monkeypatch.setattr(requirements, "NEEDS", needs)
    monkeypatch.setattr(requirements, "PLUGIN", "rlhf_ray.generation.weights.receiver:other")
    with pytest.raises(RequestError) as caught:
        requirements.check_vllm()
    message = str(caught.value)
    assert "AsyncLLM.pause_generation(softly)" in message
    assert "(mode)" not in message
    assert "AsyncLLM.rewind in vllm.v1.engine.async_llm" in message
    assert "module vllm.no_such_module" in message
    assert "entry point rlhf_ray.generation.weights.receiver:other" in message
    assert "0.32" in message
