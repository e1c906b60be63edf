"""New weights in a running engine, and the gate that proves them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from rlhf_ray.publish.bucket import pack_buckets
from rlhf_ray.publish.gate import FidelityError
from tests.stack.generation.harness import (
    BUCKET_BYTES,
    make_prompt,
    named_weights,
    samples_of,
    token_logprobs,
)

pytestmark = pytest.mark.stack


@pytest.fixture(params=["tied", "untied"])
def kind(request):
    return request.param


@pytest.fixture
def any_engine(kind, request, models):
    """The engine of that kind, with the weights of seed 0."""
    started = request.getfixturevalue(f"{kind}_engine")
    started.run(started.update(models[f"{kind}0"]))
    return started


def test_all_weights_of_another_seed_arrive(any_engine, kind, models):
    any_engine.prove(models[f"{kind}0"])
    with pytest.raises(FidelityError, match="differs from the learner"):
        any_engine.prove(models[f"{kind}1"], tolerance=0.5)
    any_engine.run(any_engine.update(models[f"{kind}1"]))
    assert any_engine.prove(models[f"{kind}1"]) < 1e-4


def test_a_bucket_left_out_stops_the_run(any_engine, kind, models):
    for bucket in (0, 2):
        any_engine.run(any_engine.update(models[f"{kind}1"], leave_out=bucket))
        with pytest.raises(FidelityError, match="engine 0 differs"):
            any_engine.prove(models[f"{kind}1"], tolerance=1e-3)
    any_engine.run(any_engine.update(models[f"{kind}1"]))
    any_engine.prove(models[f"{kind}1"])


def test_a_tied_head_without_the_mend_stops_the_run(engine, models):
    def leave_out_mend(leave_out: bool) -> None:
        llm = engine.engine._llm
        engine.run(llm.collective_rpc("leave_out_mend", args=(leave_out,)))

    leave_out_mend(True)
    try:
        engine.run(engine.update(models["tied1"]))
        with pytest.raises(FidelityError, match="engine 0 differs"):
            engine.prove(models["tied1"], tolerance=0.5)
    finally:
        leave_out_mend(False)
    engine.run(engine.update(models["tied1"]))
    engine.prove(models["tied1"])


def test_an_engine_that_missed_a_publish_is_found(engine, models):
    engine.version += 1
    with pytest.raises(FidelityError, match="engine 0 reports weights of version"):
        engine.prove(models["tied0"])
    engine.version -= 1


def test_weights_change_under_running_requests(engine, models):
    """Tokens carry the version that sampled them, and have its log-probabilities."""

    async def scenario():
        running = asyncio.create_task(engine.engine.generate(make_prompt(1), (0, 1, 2)))
        await asyncio.sleep(0.3)
        assert not running.done()
        await engine.update(models["tied1"])
        return await running

    old = engine.version
    with engine.changed(max_response_tokens=800, ignore_eos=True):
        group, failures = engine.run(scenario())
    assert failures == ()
    assert (group.summary().oldest_version, group.summary().newest_version) == (old, old + 1)
    for sample in samples_of(group):
        versions = sample.versions[sample.mask]
        assert len(sample.response) == 800
        assert torch.equal(versions, versions.sort().values)
        for version, model in ((old, models["tied0"]), (old + 1, models["tied1"])):
            chosen = sample.versions == version
            assert chosen.any()
            gap = (sample.logprobs - token_logprobs(model, sample.tokens))[chosen].abs().max()
            assert gap < 1e-4


def logprobs_with_old_cache(
    old: Any, new: Any, token_ids: tuple[int, ...], first_new: int
) -> torch.Tensor:
    """Log-probabilities of `token_ids[first_new:]`; the past has keys and values of another model.

    The engine has read all tokens but the last one before it takes the new weights.
    """
    tokens, read = torch.tensor(token_ids), first_new - 1
    with torch.no_grad():
        cache = old(input_ids=tokens[None, :read], use_cache=True).past_key_values
        logits = new(input_ids=tokens[None, read:], past_key_values=cache).logits[0]
    chosen = tokens[first_new:, None]
    return logits[:-1].log_softmax(-1).gather(1, chosen)[:, 0]


def test_running_requests_may_keep_their_cache(engine, models):
    """They go on with old keys and values; new requests and the gate see the new weights alone."""

    async def scenario():
        running = asyncio.create_task(engine.engine.generate(make_prompt(1), (0, 1)))
        await asyncio.sleep(0.3)
        assert not running.done()
        await engine.update(models["tied1"])
        return await running

    requests, old = engine.engine._requests, engine.version
    requests.keeps_cache = True
    try:
        with engine.changed(max_response_tokens=800, ignore_eos=True):
            group, failures = engine.run(scenario())
        assert failures == ()
        for sample in samples_of(group):
            # Versions and log-probabilities are of all tokens but the first.
            first_new = int((sample.versions == old + 1).nonzero()[0, 0])
            expected = logprobs_with_old_cache(
                models["tied0"], models["tied1"], sample.tokens, 1 + first_new
            )
            assert (sample.logprobs[first_new:] - expected).abs().max() < 1e-4
            # Keys and values of the new weights would give others.
            exact = token_logprobs(models["tied1"], sample.tokens)[first_new:]
            assert (exact - expected).abs().max() > 1e-2
        engine.prove(models["tied1"])
        # The same prompt again: its keys and values of before are in the cache, and are not used.
        (again,) = engine.generate(make_prompt(1))
        for sample in samples_of(again):
            gap = sample.logprobs - token_logprobs(models["tied1"], sample.tokens)
            assert gap[sample.mask].abs().max() < 1e-4
    finally:
        requests.keeps_cache = False


def test_requests_that_start_together_wait_for_an_update_that_is_under_way(engine, models):
    async def scenario():
        await engine.engine.begin_update()
        call = asyncio.create_task(engine.engine.generate(make_prompt(2), (0,), together=1))
        done, _ = await asyncio.wait([call], timeout=0.5)
        assert not done
        await engine.engine.finish_update(engine.version)
        group, _ = await asyncio.wait_for(call, timeout=5)
        return group

    group = engine.run(scenario())
    assert group.summary().oldest_version == engine.version


def test_an_update_that_its_learner_left_open_ends_with_the_next(engine, models):
    """The learner has died after some buckets: requests wait, and the version stays."""

    async def scenario():
        running = asyncio.create_task(engine.engine.generate(make_prompt(4), (0,)))
        await asyncio.sleep(0.3)
        await engine.engine.begin_update()
        for bucket in list(pack_buckets(named_weights(models["tied1"]), BUCKET_BYTES))[:2]:
            await engine.engine.load_bucket(bucket)
        await asyncio.sleep(0.3)
        assert not running.done()
        assert await engine.engine.weight_version() == engine.version
        await engine.update(models["tied1"])
        return await running

    old = engine.version
    with engine.changed(max_response_tokens=800, ignore_eos=True):
        group, failures = engine.run(scenario())
    assert failures == ()
    (sample,) = samples_of(group)
    assert sorted(set(sample.versions[sample.mask].tolist())) == [old, old + 1]
    engine.prove(models["tied1"])
    # The pause was given back: the next update begins and ends.
    engine.run(engine.update(models["tied0"]))
    engine.prove(models["tied0"])
