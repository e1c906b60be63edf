"""From finished samples to a group."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.generation.results import FinishedSample, expand_spans, make_group, response_text
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


def sample(index: int, *token_ids: int, version: int = 0) -> FinishedSample:
    return FinishedSample(
        sample_index=index,
        token_ids=token_ids,
        logprobs=tuple(-float(token) for token in token_ids),
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
    assert group.weight_versions.tolist() == [-1, -1, 0, 0, -1, -1, 4]
    assert group.responses == ("text 0", "text 2")
    assert group.failures == (failure,)
    assert not group.is_scored
    assert group.summary().response_lengths == (2, 1)


def test_a_group_without_samples_can_travel():
    group = make_group(PROMPT, [], [])
    assert group.num_samples == 0
    assert group.token_ids.dtype == torch.int64
    assert group.summary().newest_version == -1


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
