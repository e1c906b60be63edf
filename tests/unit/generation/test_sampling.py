"""Seeds and sampling parameters."""

from __future__ import annotations

import pytest

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.generation.sampling import num_returned, sample_seed, sampling_arguments


def test_seeds_are_the_same_everywhere():
    # As `printf 0:0 | sha256sum` gives it: a seed that changes would change every run.
    assert sample_seed(0, 0) == 6213027144842677344
    assert sample_seed(123456789, 7) == 6565844191629897557


def test_seeds_fit_and_differ():
    seeds = [sample_seed(prompt, index) for prompt in range(100) for index in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_setting_reaches_the_engine():
    generation = GenerationConfig(
        temperature=0.7,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        max_response_tokens=33,
        min_response_tokens=2,
        ignore_eos=True,
        stop=["\n", "END"],
    )
    arguments = sampling_arguments(generation, seed=5, vocab_size=1000)
    assert arguments["seed"] == 5
    assert arguments["temperature"] == 0.7
    assert (arguments["top_p"], arguments["top_k"], arguments["min_p"]) == (0.9, 20, 0.1)
    assert (arguments["min_tokens"], arguments["max_tokens"]) == (2, 33)
    assert arguments["ignore_eos"] is True
    assert arguments["stop"] == ["\n", "END"]
    assert arguments["stop_token_ids"] == []
    assert arguments["detokenize"] is True
    # The top 20, and room for 16 that tie with the last one.
    assert arguments["logprobs"] == 36


def test_ends_of_turns_end_a_response_unless_all_ends_are_ignored():
    def stops(**settings: bool) -> list[int]:
        arguments = sampling_arguments(
            GenerationConfig(**settings), seed=0, vocab_size=1000, end_token_ids=(3, 7)
        )
        return arguments["stop_token_ids"]

    assert stops() == [3, 7]
    assert stops(ignore_eos=True) == []


@pytest.mark.parametrize(
    ("top_k", "vocab_size", "entries"),
    [(0, 1000, 0), (1, 1000, 17), (200, 1000, 250), (200, 220, 220), (1024, 50_000, 1280)],
)
def test_every_token_that_top_k_leaves_is_asked_for(top_k, vocab_size, entries):
    assert num_returned(top_k, vocab_size=vocab_size) == entries


def test_text_is_decoded_on_the_way_only_to_find_stop_strings():
    arguments = sampling_arguments(GenerationConfig(), seed=0, vocab_size=1000)
    assert arguments["logprobs"] == 0
    assert arguments["detokenize"] is False
    assert arguments["stop"] is None


@pytest.mark.parametrize("temperature", [0.001, 2.5, float("nan")])
def test_temperatures_that_vllm_would_change_are_refused(temperature):
    with pytest.raises(ValueError, match=r"choose one from 0\.01 to 2"):
        sampling_arguments(GenerationConfig(temperature=temperature), seed=0, vocab_size=1000)
