"""Which cleaning steps a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf_ray.config.groups.prepare import PrepareConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.prepare.cleaning.decontamination import Leaks
from rlhf_ray.data.prepare.cleaning.duplicates import Duplicates, NearDuplicates
from rlhf_ray.data.prepare.cleaning.language import Language
from rlhf_ray.data.prepare.cleaning.lengths import Characters, CountTokens, Tokens
from rlhf_ray.data.prepare.cleaning.personal_data import Finder, PersonalData
from rlhf_ray.data.prepare.cleaning.steps import Notes, Step
from rlhf_ray.data.prepare.cleaning.text_normalization import Mending
from rlhf_ray.data.prepare.conversion.contents import Sample
from rlhf_ray.data.prepare.conversion.reading import read_samples
from rlhf_ray.data.prepare.conversion.shape import Shape
from rlhf_ray.data.prepare.libraries import library
from rlhf_ray.data.prepare.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaning:
    """The steps of a run.

    Attributes:
        before_routing: those that change what a sample is known by.
        after_routing: those that look at it as what it has become.
        against_others: those of one data set, which compare with what is stored.
        notes: what the steps find and do not remove.
    """

    before_routing: tuple[Step, ...]
    after_routing: tuple[Step, ...]
    against_others: Callable[[Store, str], tuple[Step, ...]]
    notes: Notes


def make_cleaning(
    prepare: PrepareConfig, evaluation: tuple[PreparedSource, ...], count_tokens: CountTokens | None
) -> Cleaning:
    """The steps in their order: cheap ones first, comparisons with other samples last.

    Args:
        count_tokens: None where no length is in tokens.

    Raises:
        RequestError: a library is missing, or does not know a language or region.
        DataError: an evaluation set cannot be read.
    """
    notes = Notes()
    mending = (Mending(notes),) if prepare.mend_encoding else ()
    if prepare.duplicates == "near":
        library("rensa", key="prepare.duplicates=near")
    return Cleaning(
        before_routing=mending,
        after_routing=(
            Shape(),
            *_length_steps(prepare, count_tokens),
            *_language_steps(prepare),
            *_personal_steps(prepare, notes),
            *_leak_steps(prepare, evaluation, mending),
        ),
        against_others=lambda store, dataset: _comparisons(prepare, store, dataset),
        notes=notes,
    )


def _length_steps(prepare: PrepareConfig, count_tokens: CountTokens | None) -> Iterator[Step]:
    least, most = prepare.min_characters, prepare.max_characters
    if least is not None or most is not None:
        yield Characters(least=least, most=most)
    if prepare.max_tokens is not None:
        assert count_tokens is not None, "the stage loads a tokenizer for prepare.max_tokens"
        yield Tokens(count_tokens, most=prepare.max_tokens)


def _language_steps(prepare: PrepareConfig) -> Iterator[Step]:
    if prepare.languages:
        yield Language(
            prepare.languages,
            confidence=prepare.language_confidence,
            min_characters=prepare.language_min_characters,
        )


def _personal_steps(prepare: PrepareConfig, notes: Notes) -> Iterator[Step]:
    if prepare.personal_data != "off":
        finder = Finder(prepare.phone_region)
        yield PersonalData(finder, action=prepare.personal_data, notes=notes)


def _leak_steps(
    prepare: PrepareConfig, evaluation: tuple[PreparedSource, ...], mending: tuple[Mending, ...]
) -> Iterator[Step]:
    """Evaluation prompts are mended as training samples are, or they would not be found."""
    if evaluation:
        prompts = (
            mending[0].apply(item) if mending else item
            for source in evaluation
            for item in read_samples(source)
            if isinstance(item, Sample)
        )
        yield Leaks(prompts, num_words=prepare.leak_words)


def _comparisons(prepare: PrepareConfig, store: Store, dataset: str) -> tuple[Step, ...]:
    if prepare.duplicates == "keep":
        return ()
    exact = Duplicates(store, dataset=dataset)
    if prepare.duplicates == "exact":
        return (exact,)
    return (exact, NearDuplicates(store, dataset=dataset, similarity=prepare.near_similarity))
