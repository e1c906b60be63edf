"""Conversion of finished samples to a group."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rlhf_ray.generation.results import (
    FinishedSample,
    IncompleteSets,
    UnusableSample,
    expand_spans,
    finished_sample,
    make_group,
    response_text,
    support_from_engine,
)
from rlhf_ray.records import FailureKind, Prompt, SampleFailure

PROMPT = Prompt(
    prompt_id="e0-r1",
    stream_index=1,
    text="ab",
    token_ids=(10, 11),
    answer=None,
    source="test",
    seed=0,
    columns={},
)


def sample(
    index: int, *token_ids: int, version: int = 0, kept: Tensor | None = None
) -> FinishedSample:
    return FinishedSample(
        sample_index=index,
        token_ids=token_ids,
        logprobs=tuple(-float(token) for token in token_ids),
        support_token_ids=kept,
        versions=(version,) * len(token_ids),
        text=f"text {index}",
        finish_reason="stop",
    )


def test_a_group_is_ragged_and_aligned():
    failure = SampleFailure(
        prompt_id="e0-r1", sample_index=1, kind=FailureKind.GENERATION_ERROR, message="no"
    )
    group = make_group(PROMPT, [sample(2, 7, version=4), sample(0, 5, 6)], [failure])
    assert group.sample_indices == (0, 2)
    assert group.token_ids.tolist() == [10, 11, 5, 6, 10, 11, 7]
    assert group.lengths.tolist() == [4, 3]
    assert group.loss_mask.tolist() == [False, False, True, True, False, False, True]
    assert group.generator_logprobs.tolist() == [0, 0, -5, -6, 0, 0, -7]
    assert group.support_token_ids is None
    assert group.weight_versions.tolist() == [-1, -1, 0, 0, -1, -1, 4]
    assert group.responses == ("text 0", "text 2")
    assert group.failures == (failure,)
    assert not group.is_scored
    assert group.summary().response_lengths == (2, 1)


def test_ends_of_texts_are_aligned_with_the_tokens():
    first, second = sample(0, 5, 6), sample(1, 7)
    samples = [replace(first, text_ends=(1, 3)), replace(second, text_ends=(2,))]
    group = make_group(PROMPT, samples, [])
    assert group.steps is not None
    assert group.steps.text_ends.tolist() == [0, 0, 1, 3, 0, 0, 2]
    assert group.steps.text_ends.dtype == torch.int32
    assert group.steps.rewards.tolist() == [0.0] * 7
    assert not group.steps.ends.any()
    assert make_group(PROMPT, [first, second], []).steps is None


def test_a_group_without_samples_can_travel():
    group = make_group(PROMPT, [], [])
    assert group.num_samples == 0
    assert group.token_ids.dtype == torch.int64
    assert group.summary().newest_version == -1


def test_supports_are_filled_up_to_the_widest():
    first, second = torch.tensor([[5], [6]]).int(), torch.tensor([[9, 7]]).int()
    group = make_group(PROMPT, [sample(0, 5, 6, kept=first), sample(1, 7, kept=second)], [])
    nothing = [-1, -1]
    assert group.support_token_ids.tolist() == [
        *(nothing, nothing, [5, -1], [6, -1]),
        *(nothing, nothing, [9, 7]),
    ]
    assert group.support_token_ids.dtype == torch.int32


LN_2, NEVER = -math.log(2), -math.inf


def test_the_engine_could_sample_the_tokens_with_a_probability():
    # Per position: the sampled token, then the three likeliest.
    token_ids = [7, 4, 7, 2, 4, 4, 9, 1]
    logprobs = [LN_2, LN_2, LN_2, NEVER, 0.0, 0.0, NEVER, NEVER]
    kept = support_from_engine(token_ids, logprobs, 4)
    assert kept.tolist() == [[7, 4], [4, -1]]
    assert kept.dtype == torch.int32


def test_nothing_is_known_of_tokens_that_were_not_asked_for():
    assert support_from_engine([3, 4], [-1.0, -2.0], 1) is None
    assert support_from_engine([], [], 4) is None


@pytest.mark.parametrize(
    ("token_ids", "logprobs"),
    [
        # Three tokens tie, two came back.
        ([4, 4, 5], [-math.log(3)] * 3),
        # The sampled one is not among those that came back.
        ([6, 4, 5], [-9.0, LN_2, LN_2]),
    ],
)
def test_sets_that_are_not_whole_are_refused(token_ids, logprobs):
    with pytest.raises(IncompleteSets, match=r"generation\.top_k"):
        support_from_engine(token_ids, logprobs, 3)


def test_a_sample_with_a_set_too_few_is_refused():
    with pytest.raises(ValueError, match="2 tokens, but a support for 1"):
        sample(0, 5, 6, kept=torch.zeros(1, 3, dtype=torch.int32))


def test_spans_become_one_version_per_token():
    assert expand_spans([("0", 0, 2), ("3", 2, 3)], 3) == (0, 0, 3)
    assert expand_spans([], 0) == ()


@pytest.mark.parametrize(
    ("spans", "num_tokens"),
    [
        ([("0", 0, 2)], 3),
        ([("0", 0, 4)], 3),
        ([("0", 1, 3)], 3),
        ([("0", 0, 2), ("1", 1, 3)], 3),
        ([], 1),
        ([("default", 0, 1)], 1),
    ],
)
def test_spans_that_do_not_fit_are_refused(spans, num_tokens):
    with pytest.raises(ValueError):
        expand_spans(spans, num_tokens)


def test_a_sample_with_a_logprob_too_few_is_refused():
    with pytest.raises(ValueError, match="2 tokens, 1 log-probabilities and 2 weight versions"):
        FinishedSample(
            sample_index=0,
            token_ids=(1, 2),
            logprobs=(-1.0,),
            support_token_ids=None,
            versions=(0, 0),
            text="",
            finish_reason="stop",
        )


PIECES = ("ab", "END", "E", "ND", "x", "xEND,END")


def decode(token_ids):
    return "".join(PIECES[token] for token in token_ids)


@pytest.mark.parametrize(
    ("token_ids", "stop_string", "text"),
    [
        ((0, 1), None, "abEND"),
        ((0, 1), "END", "ab"),
        ((0, 2, 3), "END", "ab"),
        # What another token completes after it stays away too.
        ((0, 5), "END", "abx"),
        # The first one came before the least length.
        ((0, 1, 4, 1), "END", "abENDx"),
        # A text that does not show the string: of incomplete characters, for example.
        ((0, 4), "END", "abx"),
        ((), None, ""),
    ],
)
def test_the_text_ends_before_the_stop_string(token_ids, stop_string, text):
    assert response_text(decode, token_ids, stop_string) == text


def finished(
    stop_reason: int | str | None, logprobs: tuple[float, ...] = (-1.0, -2.0, -3.0)
) -> FinishedSample:
    """A sample whose last token is not special, as vLLM returns it."""
    completion = SimpleNamespace(
        token_ids=[4, 5, 9],
        logprobs=SimpleNamespace(token_ids=[4, 5, 9], logprobs=list(logprobs)),
        weight_versions=[SimpleNamespace(version="0", start=0, end=3)],
        stop_reason=stop_reason,
        finish_reason="stop",
    )
    return finished_sample(0, completion, decode=decoded, width=1, with_text_ends=True)


def decoded(token_ids) -> str:
    return "".join({4: "the", 5: " sum", 9: "<|im_end|>"}[token] for token in token_ids)


def test_a_stop_token_is_trained_on_but_not_said():
    sample = finished(9)
    assert sample.text == "the sum"
    assert sample.token_ids == (4, 5, 9)
    assert sample.text_ends == (3, 7, 7)


def test_a_last_token_that_is_no_stop_token_is_said():
    assert finished(None).text == "the sum<|im_end|>"


def test_tokens_sampled_from_nan_are_no_sample():
    with pytest.raises(UnusableSample, match=r"are NaN, .* check the files of the model"):
        finished(9, (-1.0, math.nan, -3.0))
