"""The gate passes engines that compute like the learner, and no others."""

from __future__ import annotations

import math
import pickle

import pytest

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.publish.gate import (
    FidelityError,
    Probe,
    check_fidelity,
    compare,
    default_tolerance,
    make_probe,
)


def test_compare_is_the_largest_difference():
    engine = [[-1.0, -2.0], [-3.0]]
    learner = [[-1.5, -2.0], [-2.25]]
    assert compare(engine, learner) == 0.75
    assert compare(learner, engine) == 0.75
    assert compare(engine, engine) == 0.0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_anywhere_is_the_gap(place):
    learner = [[-1.0, -2.0, -3.0]]
    engine = [[-1.0, -2.0, -3.0]]
    engine[0][place] = math.nan
    assert math.isnan(compare(engine, learner))
    assert math.isnan(compare(learner, engine))


def test_an_infinite_logprob_is_an_infinite_gap():
    assert compare([[-math.inf]], [[-1.0]]) == math.inf


@pytest.mark.parametrize(
    ("engine", "learner"), [([[-1.0]], [[-1.0, -2.0]]), ([[-1.0]], []), ([], []), ([[]], [[]])]
)
def test_sets_of_different_lengths_are_refused(engine, learner):
    with pytest.raises(ValueError, match="the engine scored"):
        compare(engine, learner)


def passes(version: int = 3, gap: float = 1e-5) -> None:
    check_fidelity(expected_version=3, versions=[3, version], gaps=[0.0, gap], tolerance=1e-3)


def test_good_engines_pass():
    passes()
    passes(gap=1e-3)


@pytest.mark.parametrize("gap", [1.1e-3, 9.7, math.inf, math.nan])
def test_a_gap_stops_the_run_and_names_the_engine(gap):
    with pytest.raises(FidelityError, match=r"engine 1 differs .* more than 0\.001") as caught:
        passes(gap=gap)
    assert "engine 0" not in str(caught.value)
    assert f"{gap:.3g}" in str(caught.value)
    assert "publish.probe_tolerance" in str(caught.value)


def test_a_wrong_version_stops_the_run():
    with pytest.raises(FidelityError, match="engine 1 reports weights of version 2, not 3"):
        passes(version=2)


def test_all_problems_are_reported_at_once():
    with pytest.raises(FidelityError) as caught:
        check_fidelity(expected_version=3, versions=[2, 3], gaps=[1.0, 2.0], tolerance=0.5)
    message = str(caught.value)
    assert "engine 0 reports" in message
    assert "engine 0 differs" in message
    assert "engine 1 differs" in message


def test_the_error_crosses_processes_and_ends_the_run():
    error = pickle.loads(pickle.dumps(FidelityError("engine 0 differs")))
    assert isinstance(error, RunFailed)
    assert str(error) == "engine 0 differs"


def test_the_probe_is_the_same_for_the_same_seed():
    def probe(seed: int) -> Probe:
        return make_probe(
            [(1, 2, 3), (4, 5)], num_sequences=5, num_tokens=8, vocab_size=50, seed=seed
        )

    assert probe(0) == probe(0)
    assert probe(0) != probe(1)
    sequences = probe(0).sequences
    assert [len(tokens) for tokens in sequences] == [8] * 5
    assert all(0 <= token < 50 for tokens in sequences for token in tokens)
    assert sequences[0][:3] == (1, 2, 3)
    assert sequences[2][:2] == (4, 5)


def test_a_probe_without_prompts_is_random_tokens():
    probe = make_probe([], num_sequences=3, num_tokens=16, vocab_size=1000, seed=0)
    assert len(set(probe.sequences)) == 3


def test_a_probe_that_scores_nothing_is_refused():
    with pytest.raises(ValueError, match="two tokens or more"):
        Probe(sequences=((1, 2), (3,)))
    with pytest.raises(ValueError, match="0 sequences"):
        Probe(sequences=())


def test_tolerance_depends_on_the_coarser_format():
    assert default_tolerance("float32", "float32") == 1e-3
    for pair in (("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")):
        assert default_tolerance(*pair) == 0.5
