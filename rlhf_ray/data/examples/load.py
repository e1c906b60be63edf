"""Loading of examples: rows are read, labelled, limited in length, split and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.example_columns import read_columns
from rlhf_ray.data.examples.labels import label_texts
from rlhf_ray.data.examples.lengths import LengthLimit
from rlhf_ray.data.examples.rows import Source, identity, open_sources
from rlhf_ray.data.examples.sets import ExampleSet, T, fingerprint_of, samples_of
from rlhf_ray.data.examples.spans import MarkedText
from rlhf_ray.data.examples.split import Overlap, content_key
from rlhf_ray.data.examples.storage.stored import StoredExamples
from rlhf_ray.data.messages import check_templates
from rlhf_ray.data.notes import RowNotes, UnreadColumns
from rlhf_ray.data.rejects import INVALID, Rejects, Skipped
from rlhf_ray.data.rendering.chat import Part
from rlhf_ray.data.rows import BadCell, DataError, Row
from rlhf_ray.data.sources.read import source_notes
from rlhf_ray.data.tokens.encoding import most_characters
from rlhf_ray.data.tokens.fidelity import TokenTextCheck
from rlhf_ray.data.tokens.plain_texts import PlainEncoder, already_lines
from rlhf_ray.data.tokens.special_texts import SpecialTextCheck
from rlhf_ray.data.tokens.turn_ends import LearntEnds, TurnEnd, added_tokens
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
        notes: what is learnt otherwise than the row says, in addition to the notes of `texts`.
    """

    question: Any
    texts: tuple[MarkedText, ...]
    build: Callable[[tuple[LabelledTokens, ...]], T]
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class GatheredExamples(Generic[T]):
    """Examples collected so far, on both sides of the held-out split; see `ExampleSet`.

    Attributes:
        unread: counts of columns that are not read.
    """

    train: Sequence[T]
    held_out: Sequence[T]
    unread: UnreadColumns
    num_cut: int = 0
    num_unended: int = 0
    special_notes: tuple[str, ...] = ()
    notes: RowNotes = field(default_factory=RowNotes)
    num_begun: int = 0
    num_ended: int = 0
    turn_ends: tuple[TurnEnd, ...] = ()
    overlap: Overlap = field(default_factory=Overlap)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides(Generic[T]):
    """Both sides of the split while they are written, and the ends that `train` teaches."""

    train: StoredExamples[T]
    held_out: StoredExamples[T]
    learnt: LearntEnds

    def add(self, example: T, *, held_out: bool) -> None:
        """Write an example to its side."""
        if held_out:
            self.held_out.append(example)
        else:
            self.train.append(example)
            self.learnt.add(samples_of(example))


def load_examples(
    kind: str,
    examples: ExamplesConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layouts: Sequence[Sequence[str]],
    draft: Callable[[Row], Draft[T]],
) -> ExampleSet[T]:
    """Read, render and tokenise the whole source, and the source of held-out rows.

    Rows are read one after the other, and examples are written to a scratch file: memory does not
    grow with them.

    Args:
        kind: kind of examples, in the plural.
        layouts: see `open_sources`.
        draft: reads one row; raises BadCell if the row is unusable.

    Raises:
        DataError: a source cannot be read, columns are missing, no example is left, or a row is
            unusable or too long and the configuration ends the run.
    """
    check_templates(examples, tokenizer)
    sides = Sides(
        train=StoredExamples[T](examples.scratch_folder),
        held_out=StoredExamples[T](examples.scratch_folder),
        learnt=LearntEnds(tokenizer),
    )
    gathered = GatheredExamples(
        train=sides.train,
        held_out=sides.held_out,
        unread=UnreadColumns(read_columns(examples, kind)),
    )
    sources = open_sources(examples, layouts)
    ends = frozenset(added_tokens(tokenizer).values())
    fidelity = TokenTextCheck(tokenizer)
    columns = [column for keys in layouts for column in (vars(examples)[key] for key in keys)]
    max_characters = most_characters(tokenizer, examples.max_tokens)
    for source in sources:
        lengths = LengthLimit(examples, source.rejects, max_characters)
        specials = SpecialTextCheck(source.config, tokenizer)

        def checked(row: Row, specials: SpecialTextCheck = specials) -> Draft[T]:
            drafted = draft(row)
            specials.check(row, [row.cells.get(column) for column in columns])
            return drafted

        drafts = _drafts(source, examples, checked, gathered.unread)
        while chunk := list(islice(drafts, _LABELLED_AT_ONCE)):
            _build(chunk, sides, gathered, tokenizer, lengths, ends, fidelity)
        gathered.num_cut += lengths.num_cut
        gathered.special_notes += specials.lines()
    gathered.special_notes += fidelity.lines()
    gathered.turn_ends = sides.learnt.found()
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
    if not gathered.train and gathered.held_out and not examples.has_eval_source:
        raise DataError(
            f"{examples.key('path')}: none of the {kind} in {examples.path} is left to learn from: "
            f"all {len(gathered.held_out)} are held out ({examples.key('eval_share')}="
            f"{examples.held_out_share:g}). Rows with the same question are held out together; "
            f"name a column of ids ({examples.key('id_column')}), or hold out another share"
            f"{sources[0].rejects.summary()}"
        )
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
    unread = gathered.unread.lines(
        "columns of the rows that are not read, and change nothing that is learnt"
    )
    return ExampleSet(
        kind=kind,
        train=gathered.train,
        held_out=gathered.held_out,
        num_cut=gathered.num_cut,
        num_unended=gathered.num_unended,
        already=tuple(already_lines(tokenizer, gathered.num_begun, gathered.num_ended)),
        turn_ends=gathered.turn_ends,
        skipped=_skipped([source.rejects for source in sources]),
        notes=(
            *(note for source in sources for note in source_notes(source.config)),
            *gathered.notes.lines(),
            *gathered.special_notes,
            *gathered.overlap.lines(),
            *unread,
        ),
        vocabulary_size=len(tokenizer),
        fingerprint=fingerprint_of(gathered.train, gathered.held_out),
    )


def _drafts(
    source: Source,
    examples: ExamplesConfig,
    draft: Callable[[Row], Draft[T]],
    unread: UnreadColumns,
) -> Iterator[tuple[Row, bool, Draft[T]]]:
    """Yield usable rows with their side and draft; reject a row whose id an earlier row has."""
    first: dict[str, str] = {}
    for row in source.rows():
        unread.add(row)
        try:
            own = identity(row, examples)
            drafted = draft(row)
            if own is not None and first.setdefault(own, row.where) is not row.where:
                raise BadCell(f"the row has the id {own!r} of {first[own]}; ids must be unique")
        except BadCell as error:
            source.rejects.bad_row(INVALID, row.where, str(error))
            continue
        key = content_key(drafted.question) if own is None else own
        yield row, source.holds_out(key), drafted


def _build(
    chunk: Sequence[tuple[Row, bool, Draft[T]]],
    sides: Sides[T],
    gathered: GatheredExamples[T],
    tokenizer: PreTrainedTokenizerBase,
    lengths: LengthLimit,
    ends: frozenset[int],
    fidelity: TokenTextCheck,
) -> None:
    """Add the examples of some drafts to their side of the split.

    Args:
        ends: ids of the tokens that can end an answer.
    """
    plain = PlainEncoder(tokenizer)
    texts = [lengths.shortened(row, draft.texts) for row, _, draft in chunk]
    labelled = iter(label_texts([t for of_row in texts for t in of_row or ()], tokenizer))
    for (row, is_held_out, draft), of_row in zip(chunk, texts, strict=True):
        if of_row is None:
            continue
        samples = list(islice(labelled, len(of_row)))
        good = [sample for sample in samples if isinstance(sample, LabelledTokens)]
        problems = [sample for sample in samples if isinstance(sample, BadCell)]
        if problems:
            lengths.rejects.bad_row(INVALID, row.where, str(problems[0]))
            continue
        example = lengths.fit(row, good, draft.build)
        if example is not None:
            sides.add(example, held_out=is_held_out)
            gathered.overlap.add(
                held_out=is_held_out,
                question=content_key(draft.question),
                whole="\n".join(text.text for text in draft.texts),
            )
            fidelity.check_example(row.where, _with_tokens(of_row, good))
            own = (note for text in draft.texts for note in text.notes)
            gathered.notes.add(row.where, (*draft.notes, *own))
            gathered.num_unended += any(_last_predicted(sample) not in ends for sample in good)
            bare = [text for text in draft.texts if text.adds_specials]
            gathered.num_begun += any(plain.begins(text.text) for text in bare)
            gathered.num_ended += any(text.has_end for text in bare)


def _with_tokens(
    texts: Sequence[MarkedText], samples: Sequence[LabelledTokens]
) -> Iterator[tuple[str, Sequence[Part], list[int], list[bool]]]:
    for text, sample in zip(texts, samples, strict=True):
        yield text.text, text.answers, sample.token_ids.tolist(), sample.loss_mask.tolist()


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
