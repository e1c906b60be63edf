"""The fidelity gate: what an engine computes must be what the learner computes.

A fixed probe is scored by every engine and by the learner after a publish. Weights can be
corrupted silently on the way (vLLM 0.32 on CPU keeps the old packed `lm_head` of a model with
tied embeddings, for one), and no checksum of bytes would notice; log-probabilities do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config.errors import RunFailed

_FLOAT32_TOLERANCE = 1e-3
_LOW_PRECISION_TOLERANCE = 0.5


class FidelityError(RunFailed):
    """An engine does not compute what the learner computes, or has another version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Token sequences that are scored after every publish; the same for the whole run."""

    sequences: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        short = [len(tokens) for tokens in self.sequences if len(tokens) < 2]
        if short or not self.sequences:
            raise ValueError(
                f"a probe needs sequences of two tokens or more, got {len(self.sequences)} "
                f"sequences, {len(short)} of them shorter"
            )


def make_probe(
    prompts: Sequence[tuple[int, ...]],
    *,
    num_sequences: int,
    num_tokens: int,
    vocab_size: int,
    seed: int,
) -> Probe:
    """Half of the sequences start with a prompt, all go on with random tokens.

    Random tokens reach rows of the embedding that prompts never use; a prompt reaches the
    values that matter in practice.

    Args:
        prompts: token ids of some prompts; may be empty.
        num_tokens: length of every sequence; the engine needs room for one more.
        vocab_size: ids below it are drawn.
    """
    generator = random.Random(f"probe-{seed}")
    sequences = []
    for number in range(num_sequences):
        start: tuple[int, ...] = ()
        if prompts and number % 2 == 0:
            start = tuple(prompts[number // 2 % len(prompts)])[: num_tokens // 2]
        rest = (generator.randrange(vocab_size) for _ in range(num_tokens - len(start)))
        sequences.append((*start, *rest))
    return Probe(sequences=tuple(sequences))


def default_tolerance(engine_dtype: str, learner_dtype: str) -> float:
    """Largest gap to let through, in nats, where the configuration names none."""
    is_exact = engine_dtype == "float32" and learner_dtype == "float32"
    return _FLOAT32_TOLERANCE if is_exact else _LOW_PRECISION_TOLERANCE


def compare(
    engine_logprobs: Sequence[Sequence[float]], learner_logprobs: Sequence[Sequence[float]]
) -> float:
    """Largest absolute difference of two sets of log-probabilities, in nats; NaN if any is NaN.

    Raises:
        ValueError: the two do not have the same lengths, or hold no number at all.
    """
    engine_lengths = [len(row) for row in engine_logprobs]
    learner_lengths = [len(row) for row in learner_logprobs]
    if engine_lengths != learner_lengths or not sum(engine_lengths):
        raise ValueError(
            f"the engine scored sequences of {engine_lengths} tokens, the learner of "
            f"{learner_lengths}"
        )
    gaps = [
        abs(engine - learner)
        for engine_row, learner_row in zip(engine_logprobs, learner_logprobs, strict=True)
        for engine, learner in zip(engine_row, learner_row, strict=True)
    ]
    # max() would let a NaN through or not, depending on where it stands.
    return math.nan if any(math.isnan(gap) for gap in gaps) else max(gaps)


def check(
    *,
    expected_version: int,
    versions: Sequence[int],
    gaps: Sequence[float],
    tolerance: float,
) -> None:
    """Let the run go on only if every engine holds the expected weights.

    Args:
        versions [E]: what each engine reports.
        gaps [E]: `compare` of each engine with the learner.
        tolerance: largest gap to let through, in nats.

    Raises:
        FidelityError: names every engine that is wrong, by how much, and what to try.
    """
    problems = []
    for engine, (version, gap) in enumerate(zip(versions, gaps, strict=True)):
        if version != expected_version:
            problems.append(
                f"engine {engine} reports weights of version {version}, not {expected_version}"
            )
        # A comparison with NaN is False: ask for what must hold.
        if not gap <= tolerance:
            problems.append(
                f"engine {engine} differs from the learner by {gap:.3g} nats on the probe, "
                f"more than {tolerance:g}"
            )
    if problems:
        raise FidelityError(
            f"weights of version {expected_version} did not arrive as they were sent: "
            f"{'; '.join(problems)}. Training would go on with samples of another policy, so the "
            "run stops here. If engine and learner have different number formats, compare with "
            "generation.dtype=float32 training.dtype=float32; if the gap is rounding, raise "
            "publish.probe_tolerance; otherwise the model's layers are not reloaded right by "
            "this vLLM: report it with the model's architecture"
        )
