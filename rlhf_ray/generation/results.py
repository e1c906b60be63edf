"""Conversion of finished samples to a rollout group: pure functions of plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.generation.text_ends import text_ends
from rlhf_ray.records import GroupSteps, Prompt, RolloutGroup, SampleFailure
from rlhf_ray.records.support import NO_TOKEN, join_supports

# Tolerance for the total probability of a support, whose log-probabilities were rounded to float32.
_MISSING_MASS = 1e-3


GARBAGE = (
    "the engine's log-probabilities are NaN, so that its tokens mean nothing: weights are damaged, "
    "or numbers exceed the number format; check the files of the model, or set its dtype to float32"
)


class UnusableSample(ValueError):  # noqa: N818 - it reads as a sentence
    """A sample of the engine cannot be used; the message says why."""


class IncompleteSets(UnusableSample):
    """The engine has not returned all tokens that it could have sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedSample:
    """One response as the engine sampled it.

    Attributes:
        token_ids [R]: all sampled tokens, including an end-of-text token and the tokens of a stop
            string.
        logprobs [R]: log-probabilities of these tokens under the sampling distribution.
        support_token_ids [R, K] int32: support of the sampling distribution, or None for the
            whole vocabulary; see `records/support.py`.
        versions [R]: weight version that sampled each token.
        text: the response, without special tokens and without the stop string.
        finish_reason: "stop" or "length".
        text_ends [R]: number of characters of the text after each token; None if the run does not
            train on steps.
    """

    sample_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    support_token_ids: Tensor | None
    versions: tuple[int, ...]
    text: str
    finish_reason: str
    text_ends: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        num_tokens = len(self.token_ids)
        if not num_tokens == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"sample {self.sample_index} has {num_tokens} tokens, {len(self.logprobs)} "
                f"log-probabilities and {len(self.versions)} weight versions"
            )
        support = self.support_token_ids
        if support is not None and support.shape[0] != num_tokens:
            raise ValueError(
                f"sample {self.sample_index} has {num_tokens} tokens, but a support for "
                f"{support.shape[0]}"
            )


def is_garbage(logprobs: Sequence[float]) -> bool:
    """Whether the tokens with these log-probabilities were sampled from logits with NaN.

    One NaN among the logits makes all log-probabilities NaN, and vLLM samples on: token 0, or any.
    """
    return any(math.isnan(value) for value in logprobs)


def expand_spans(spans: Sequence[tuple[str, int, int]], num_tokens: int) -> tuple[int, ...]:
    """Weight version of every token.

    Args:
        spans: (version, first token, one past the last token), in order and without gaps.

    Raises:
        ValueError: the spans do not cover the tokens, or a version is not a number.
    """
    versions: list[int] = []
    for version, start, end in spans:
        if start != len(versions):
            raise ValueError(f"weight version spans {list(spans)} have a gap or overlap")
        versions += [int(version)] * (end - start)
    if len(versions) != num_tokens:
        raise ValueError(f"weight version spans {list(spans)} do not cover {num_tokens} tokens")
    return tuple(versions)


def support_from_engine(
    token_ids: Sequence[int], logprobs: Sequence[float], width: int
) -> Tensor | None:
    """Support of the sampling distribution at every position, from vLLM's log-probabilities.

    Args:
        token_ids, logprobs [R * width]: per position the sampled token, then the `width` - 1
            likeliest of the sampling distribution, with its log-probabilities: -inf for a token
            that could not be sampled.

    Returns:
        [R, K] int32, as wide as the largest set, padded with -1 on the right; None for a width of
        1, which requests only the sampled token, and for a sample without a token.

    Raises:
        IncompleteSets: more tokens tie with the last one of the top k than were requested.
    """
    num_tokens = len(token_ids) // width
    if width == 1 or num_tokens == 0:
        return None
    ids = torch.tensor(token_ids, dtype=torch.int32).view(num_tokens, width)
    values = torch.tensor(logprobs, dtype=torch.float64).view(num_tokens, width)[:, 1:]
    kept = torch.where(values > -math.inf, ids[:, 1:], NO_TOKEN)
    # The set is complete if its probabilities sum to 1 and the sampled token is in it. The learner
    # renormalises over the set, so that a missing token would silently bias every ratio.
    least = float(values.exp().sum(dim=1).min())
    if least < 1 - _MISSING_MASS or not bool((kept == ids[:, :1]).any(dim=1).all()):
        raise IncompleteSets(
            f"the {width - 1} likeliest tokens hold {least:.4g} of the probability, and should "
            f"hold all of it: too many tie with the last one of generation.top_k; set "
            f"generation.dtype=float32, which has hardly any ties, or a larger generation.top_k"
        )
    # Token ids in falling order, so that -1 is on the right.
    kept = kept.sort(dim=1, descending=True).values
    return kept[:, : int((kept != NO_TOKEN).sum(dim=1).max())].clone()


def response_text(
    decode: Callable[[Sequence[int]], str], token_ids: Sequence[int], stop_string: str | None
) -> str:
    """Text of the response for rewards and logs, without the stop string that ended it.

    vLLM's own text is not used: vLLM 0.32 decodes it after the prompt and may include bytes of a
    prompt that ends within a character, and it decodes only if there are stop strings.

    Args:
        stop_string: the stop string, completed by the last token; None if something else ended the
            response.
    """
    text = decode(token_ids)
    if stop_string is None:
        return text
    # Search from the last token on: an earlier occurrence, before `min_response_tokens`, did not
    # end the response.
    earliest = max(len(decode(token_ids[:-1])) - len(stop_string) + 1, 0)
    place = text.find(stop_string, earliest)
    return text if place < 0 else text[:place]


def said_tokens(completion: Any) -> Sequence[int]:
    """The tokens of vLLM's `CompletionOutput` without a stop token at their end.

    Decoding leaves special tokens out, but a token that ends turns need not be marked as special.
    """
    token_ids = completion.token_ids
    return token_ids[:-1] if isinstance(completion.stop_reason, int) else token_ids


def make_group(
    prompt: Prompt, samples: Sequence[FinishedSample], failures: Sequence[SampleFailure]
) -> RolloutGroup:
    """Make the unscored group of one prompt; samples in the order of their index, possibly none."""
    samples = sorted(samples, key=lambda sample: sample.sample_index)
    num_prompt = len(prompt.token_ids)
    token_ids: list[int] = []
    loss_mask: list[bool] = []
    logprobs: list[float] = []
    supports: list[Tensor | None] = []
    sizes: list[int] = []
    versions: list[int] = []
    ends: list[int] = []
    for sample in samples:
        token_ids += [*prompt.token_ids, *sample.token_ids]
        loss_mask += [False] * num_prompt + [True] * len(sample.token_ids)
        logprobs += [0.0] * num_prompt + [*sample.logprobs]
        supports += [None, sample.support_token_ids]
        sizes += [num_prompt, len(sample.token_ids)]
        versions += [-1] * num_prompt + [*sample.versions]
        if sample.text_ends is not None:
            ends += [0] * num_prompt + [*sample.text_ends]
    lengths = [num_prompt + len(sample.token_ids) for sample in samples]
    return RolloutGroup(
        prompt=prompt,
        sample_indices=tuple(sample.sample_index for sample in samples),
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        loss_mask=torch.tensor(loss_mask, dtype=torch.bool),
        generator_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        support_token_ids=join_supports(supports, sizes),
        weight_versions=torch.tensor(versions, dtype=torch.int64),
        responses=tuple(sample.text for sample in samples),
        finish_reasons=tuple(sample.finish_reason for sample in samples),
        rewards=torch.zeros(0, dtype=torch.float64),
        reward_parts={},
        failures=tuple(failures),
        steps=_unscored_steps(ends) if ends else None,
    )


def _unscored_steps(text_ends: list[int]) -> GroupSteps:
    num_tokens = len(text_ends)
    return GroupSteps(
        text_ends=torch.tensor(text_ends, dtype=torch.int32),
        rewards=torch.zeros(num_tokens, dtype=torch.float64),
        ends=torch.zeros(num_tokens, dtype=torch.bool),
    )


def finished_sample(
    sample_index: int,
    completion: Any,
    *,
    decode: Callable[[Sequence[int]], str],
    width: int,
    with_text_ends: bool = False,
) -> FinishedSample:
    """Convert vLLM's `CompletionOutput` of a finished sample.

    Args:
        decode: tokens to text, special tokens left out.
        width: number of log-probabilities per position: the sampled token, then the likeliest ones.
        with_text_ends: find where in the text each token ends.

    Raises:
        UnusableSample: the engine computes NaN, or has not returned all tokens that it could have
            sampled.
    """
    token_ids = tuple(completion.token_ids)
    # vLLM's flat list: `width` entries for each token, one token after the other.
    flat, num_entries = completion.logprobs, len(token_ids) * width
    if is_garbage(flat.logprobs[:num_entries:width]):
        raise UnusableSample(GARBAGE)
    spans = [(span.version, span.start, span.end) for span in completion.weight_versions]
    # vLLM's stop reason: a stop string, the id of a stop token, or None at the end of text and at
    # the limit.
    reason = completion.stop_reason
    stop_string = reason if isinstance(reason, str) else None
    text = response_text(decode, said_tokens(completion), stop_string)
    return FinishedSample(
        sample_index=sample_index,
        token_ids=token_ids,
        logprobs=tuple(flat.logprobs[:num_entries:width]),
        support_token_ids=support_from_engine(
            flat.token_ids[:num_entries], flat.logprobs[:num_entries], width
        ),
        versions=expand_spans(spans, len(token_ids)),
        text=text,
        finish_reason=completion.finish_reason,
        text_ends=text_ends(decode, token_ids, text) if with_text_ends else None,
    )
