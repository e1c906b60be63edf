"""Loading of examples: rows are read, labelled, limited in length, split and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples.labels import label_texts
from rlhf_ray.data.examples.lengths import LengthLimit
from rlhf_ray.data.examples.rows import Source, identity, read_sources
from rlhf_ray.data.examples.sets import ExampleSet, T, fingerprint_of, samples_of
from rlhf_ray.data.examples.spans import MarkedText
from rlhf_ray.data.examples.split import content_key
from rlhf_ray.data.messages import check_system_prompt
from rlhf_ray.data.plain_texts import PlainEncoder, already_lines
from rlhf_ray.data.rejects import INVALID, Rejects, Skipped
from rlhf_ray.data.rows import BadCell, DataError, Row
from rlhf_ray.data.turn_ends import LearntEnds, TurnEnd, added_tokens
from rlhf_ray.records.supervised import LabelledTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LABELLED_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft(Generic[T]):
    """An example before it has tokens.

    Attributes:
        question: the prompt as plain values; the key for the held-out split of a row without id.
        texts: texts whose tokens make the example.
        build: makes the example of these tokens; raises ValueError if that is impossible.
    """

    question: Any
    texts: tuple[MarkedText, ...]
    build: Callable[[tuple[LabelledTokens, ...]], T]


@dataclass(slots=True)
class GatheredExamples(Generic[T]):
    """Examples collected so far, on both sides of the held-out split; see `ExampleSet`."""

    train: list[T] = field(default_factory=list)
    held_out: list[T] = field(default_factory=list)
    num_cut: int = 0
    num_unended: int = 0
    num_begun: int = 0
    num_ended: int = 0
    turn_ends: tuple[TurnEnd, ...] = ()

    def of(self, *, held_out: bool) -> list[T]:
        """The list of one side."""
        return self.held_out if held_out else self.train


def load_examples(
    kind: str,
    examples: ExamplesConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layouts: Sequence[Sequence[str]],
    draft: Callable[[Row], Draft[T]],
) -> ExampleSet[T]:
    """Read, render and tokenise the whole source, and the source of held-out rows.

    Args:
        kind: kind of examples, in the plural.
        layouts: see `read_sources`.
        draft: reads one row; raises BadCell if the row is unusable.

    Raises:
        DataError: a source cannot be read, columns are missing, no example is left, or a row is
            unusable or too long and the configuration ends the run.
    """
    check_system_prompt(examples, tokenizer)
    gathered: GatheredExamples[T] = GatheredExamples()
    sources = read_sources(examples, layouts)
    ends = frozenset(added_tokens(tokenizer).values())
    learnt = LearntEnds(tokenizer)
    for source in sources:
        lengths = LengthLimit(examples, source.rejects)
        drafts = _drafts(source, examples, draft)
        while chunk := list(islice(drafts, _LABELLED_AT_ONCE)):
            _build(chunk, gathered, tokenizer, lengths, ends)
        gathered.num_cut += lengths.num_cut
    for example in gathered.train:
        learnt.add(samples_of(example))
    gathered.turn_ends = learnt.found()
    return finished_set(kind, examples, tokenizer, gathered, sources)


def finished_set(
    kind: str,
    examples: ExamplesConfig,
    tokenizer: PreTrainedTokenizerBase,
    gathered: GatheredExamples[T],
    sources: Sequence[Source],
) -> ExampleSet[T]:
    """Make the set of the collected examples.

    Raises:
        DataError: no training example is left, or none of a source of held-out rows.
    """
    if not gathered.train:
        raise DataError(
            f"{examples.key('path')}: none of the {kind} in {examples.path} is left to learn from"
            f"{sources[0].rejects.summary()}"
        )
    if examples.has_eval_source and not gathered.held_out:
        last = sources[-1]
        raise DataError(
            f"{last.config.key('path')}: none of the {kind} in {last.config.path} is left"
            f"{last.rejects.summary()}"
        )
    return ExampleSet(
        kind=kind,
        train=tuple(gathered.train),
        held_out=tuple(gathered.held_out),
        num_cut=gathered.num_cut,
        num_unended=gathered.num_unended,
        already=tuple(already_lines(tokenizer, gathered.num_begun, gathered.num_ended)),
        turn_ends=gathered.turn_ends,
        skipped=_skipped([source.rejects for source in sources]),
        vocabulary_size=len(tokenizer),
        fingerprint=fingerprint_of(gathered.train, gathered.held_out),
    )


def _drafts(
    source: Source, examples: ExamplesConfig, draft: Callable[[Row], Draft[T]]
) -> Iterator[tuple[Row, bool, Draft[T]]]:
    """Yield usable rows with their side and draft; reject a row whose id an earlier row has."""
    first: dict[str, Row] = {}
    for row in source.rows:
        try:
            own = identity(row, examples)
            drafted = draft(row)
            if own is not None and first.setdefault(own, row) is not row:
                raise BadCell(
                    f"the row has the id {own!r} of {first[own].where}; ids must be unique"
                )
        except BadCell as error:
            source.rejects.bad_row(INVALID, row.where, str(error))
            continue
        key = content_key(drafted.question) if own is None else own
        yield row, source.holds_out(key), drafted


def _build(
    chunk: Sequence[tuple[Row, bool, Draft[T]]],
    gathered: GatheredExamples[T],
    tokenizer: PreTrainedTokenizerBase,
    lengths: LengthLimit,
    ends: frozenset[int],
) -> None:
    """Add the examples of some drafts to their side of the split.

    Args:
        ends: ids of the tokens that can end an answer.
    """
    plain = PlainEncoder(tokenizer)
    labelled = iter(label_texts([t for _, _, draft in chunk for t in draft.texts], tokenizer))
    for row, is_held_out, draft in chunk:
        samples = list(islice(labelled, len(draft.texts)))
        good = [sample for sample in samples if isinstance(sample, LabelledTokens)]
        problems = [sample for sample in samples if isinstance(sample, BadCell)]
        if problems:
            lengths.rejects.bad_row(INVALID, row.where, str(problems[0]))
            continue
        example = lengths.fit(row, good, draft.build)
        if example is not None:
            gathered.of(held_out=is_held_out).append(example)
            gathered.num_unended += any(_last_predicted(sample) not in ends for sample in good)
            texts = [text for text in draft.texts if text.adds_specials]
            gathered.num_begun += any(plain.begins(text.text) for text in texts)
            gathered.num_ended += any(text.has_end for text in texts)


def _last_predicted(sample: LabelledTokens) -> int:
    return int(sample.token_ids[sample.loss_mask][-1])


def _skipped(rejects: Sequence[Rejects]) -> tuple[Skipped, ...]:
    """Merge the skipped rows of all sources by reason."""
    merged: dict[str, Skipped] = {}
    for part in rejects:
        for skipped in part.skipped():
            known = merged.get(skipped.reason)
            merged[skipped.reason] = Skipped(
                reason=skipped.reason,
                count=skipped.count + (known.count if known else 0),
                example=known.example if known else skipped.example,
            )
    return tuple(merged.values())
