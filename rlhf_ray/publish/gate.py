"""The fidelity gate: an engine must compute the same log-probabilities as the learner.

After a publish, every engine and the learner score a fixed probe. Weights can be corrupted
silently on their way into the engine: vLLM 0.32 on a CPU, for example, keeps the old packed
`lm_head` of a model with tied embeddings. A checksum of the bytes would not notice;
log-probabilities do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config.errors import RunFailed

_FLOAT32_TOLERANCE = 1e-3
_LOW_PRECISION_TOLERANCE = 0.5
# No token of a sound model is as unlikely; rounding alone is then above the tolerance.
_IMPOSSIBLE = -1000.0


class FidelityError(RunFailed):
    """An engine's log-probabilities or weight version differ from the learner's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The token sequences of the probe, the same for the whole run."""

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
    """Make sequences of random tokens, every other one behind a prompt.

    Random tokens reach rows of the embedding that prompts never use; prompts reach the values
    that matter in practice.

    Args:
        prompts: token ids of some prompts; may be empty.
        num_tokens: length of every sequence; the engine needs room for one more.
        vocab_size: random ids are drawn below it.
    """
    generator = random.Random(f"probe-{seed}")
    sequences = []
    for number in range(num_sequences):
        start: tuple[int, ...] = ()
        # At most half of a sequence is prompt, so that every sequence has random tokens.
        if prompts and number % 2 == 0:
            start = tuple(prompts[number // 2 % len(prompts)])[: num_tokens // 2]
        rest = (generator.randrange(vocab_size) for _ in range(num_tokens - len(start)))
        sequences.append((*start, *rest))
    return Probe(sequences=tuple(sequences))


def default_tolerance(engine_dtype: str, learner_dtype: str) -> float:
    """The largest allowed gap, in nats, if the configuration sets none."""
    is_exact = engine_dtype == "float32" and learner_dtype == "float32"
    return _FLOAT32_TOLERANCE if is_exact else _LOW_PRECISION_TOLERANCE


def compare(
    engine_logprobs: Sequence[Sequence[float]], learner_logprobs: Sequence[Sequence[float]]
) -> float:
    """Largest absolute difference of two sets of log-probabilities, in nats; NaN if any is NaN.

    Raises:
        ValueError: the two sets differ in their lengths, or are empty.
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
    # max() alone would return NaN or not, depending on its position.
    return math.nan if any(math.isnan(gap) for gap in gaps) else max(gaps)


def problems_of(version: int, gap: float, *, expected_version: int, limit: float) -> list[str]:
    """Say what is wrong with the weights of one engine; see `check_fidelity`."""
    found = []
    if version != expected_version:
        found.append(f"reports weights of version {version}, not {expected_version}")
    # Not `gap > limit`: a comparison with NaN is False, and NaN must not pass.
    if not gap <= limit:
        found.append(
            f"differs from the learner by {gap:.3g} nats on the probe, more than {limit:g}"
        )
    return found


def check_learner(logprobs: Sequence[Sequence[float]], *, version: int) -> None:
    """Refuse to compare with a learner whose own log-probabilities are not finite.

    Args:
        logprobs: of the probe, by the learner.
        version: of its weights.

    Raises:
        RunFailed: training has diverged; the transfer of the weights is not to blame.
    """
    if all(math.isfinite(value) for row in logprobs for value in row):
        return
    raise RunFailed(
        f"the learner's own log-probabilities of the probe are not finite with weights of version "
        f"{version}: training has diverged. Lower training.learning_rate or "
        f"training.gradient_clip_norm, look at the rewards of the last steps, and go on from a "
        f"checkpoint before them"
    )


def check_fidelity(
    *,
    expected_version: int,
    versions: Sequence[int],
    gaps: Sequence[float],
    tolerance: float,
    engines: Sequence[int] | None = None,
    lowest: float = 0.0,
) -> None:
    """Check that every engine holds the expected weights.

    Args:
        versions [E]: weight version that each engine reports.
        gaps [E]: `compare` of each engine with the learner.
        tolerance: largest allowed gap, in nats.
        engines [E]: their numbers; None for the first E.
        lowest: of the learner's log-probabilities.

    Raises:
        FidelityError: names every engine that is wrong, by how much, and what to try.
    """
    numbers = range(len(versions)) if engines is None else engines
    problems = [
        f"engine {engine} {words}"
        for engine, version, gap in zip(numbers, versions, gaps, strict=True)
        for words in problems_of(version, gap, expected_version=expected_version, limit=tolerance)
    ]
    if problems:
        diverged = (
            f" The learner's own log-probabilities go down to {lowest:.3g}, where the numbers of "
            f"the formats lie far apart: training has most likely diverged, so lower "
            f"training.learning_rate first."
        )
        hint = diverged if lowest < _IMPOSSIBLE else ""
        raise FidelityError(
            f"weights of version {expected_version} did not arrive as they were sent: "
            f"{'; '.join(problems)}.{hint} Training would go on with samples of another policy, so "
            "the run stops here. If engine and learner have different number formats, compare with "
            "generation.dtype=float32 training.dtype=float32; if the gap is rounding, raise "
            "publish.probe_tolerance; otherwise the model's layers are not reloaded right by "
            "this vLLM: report it with the model's architecture"
        )
