"""Cleaning steps of a configuration, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf_ray.config.groups.prepare import PrepareConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.prepare.cleaning.content_check import ContentCheck
from rlhf_ray.data.prepare.cleaning.decontamination import Decontamination
from rlhf_ray.data.prepare.cleaning.deduplication import ExactDeduplication, NearDeduplication
from rlhf_ray.data.prepare.cleaning.language import LanguageFilter
from rlhf_ray.data.prepare.cleaning.lengths import CharacterLimits, TokenLimit
from rlhf_ray.data.prepare.cleaning.personal_data import PersonalDataFilter, PersonalDataFinder
from rlhf_ray.data.prepare.cleaning.steps import Notes, Step
from rlhf_ray.data.prepare.cleaning.text_normalization import TextNormalization
from rlhf_ray.data.prepare.conversion.contents import Sample
from rlhf_ray.data.prepare.libraries import library
from rlhf_ray.data.prepare.reading import read_samples
from rlhf_ray.data.prepare.store import SampleStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaning:
    """The steps of a run.

    Attributes:
        before_routing: steps that change the text by which a sample is routed.
        after_routing: steps on the converted sample.
        against_others: makes the steps of one data set that compare with stored samples.
        notes: findings of the steps that remove nothing.
    """

    before_routing: tuple[Step, ...]
    after_routing: tuple[Step, ...]
    against_others: Callable[[SampleStore, str], tuple[Step, ...]]
    notes: Notes


def make_cleaning(
    prepare: PrepareConfig, evaluation: tuple[PreparedSource, ...], token_limit: TokenLimit | None
) -> Cleaning:
    """Make the steps: cheap ones first, comparisons with other samples last.

    Args:
        token_limit: None if no limit is in tokens.

    Raises:
        RequestError: a library is missing, or does not know a language or region.
        DataError: an evaluation set cannot be read.
    """
    notes = Notes()
    normalization = (TextNormalization(notes),) if prepare.mend_encoding else ()
    if prepare.duplicates == "near":
        library("rensa", key="prepare.duplicates=near")
    return Cleaning(
        before_routing=normalization,
        after_routing=(
            ContentCheck(),
            *_length_steps(prepare, token_limit),
            *_language_steps(prepare),
            *_personal_steps(prepare, notes),
            *_decontamination_steps(prepare, evaluation, normalization),
        ),
        against_others=lambda store, dataset: _comparisons(prepare, store, dataset),
        notes=notes,
    )


def _length_steps(prepare: PrepareConfig, token_limit: TokenLimit | None) -> Iterator[Step]:
    least, most = prepare.min_characters, prepare.max_characters
    if least is not None or most is not None:
        yield CharacterLimits(least=least, most=most)
    if prepare.max_tokens is not None:
        assert token_limit is not None, "the stage loads a tokenizer for prepare.max_tokens"
        yield token_limit


def _language_steps(prepare: PrepareConfig) -> Iterator[Step]:
    if prepare.languages:
        yield LanguageFilter(
            prepare.languages,
            confidence=prepare.language_confidence,
            min_characters=prepare.language_min_characters,
        )


def _personal_steps(prepare: PrepareConfig, notes: Notes) -> Iterator[Step]:
    if prepare.personal_data != "off":
        finder = PersonalDataFinder(prepare.phone_region)
        yield PersonalDataFilter(finder, action=prepare.personal_data, notes=notes)


def _decontamination_steps(
    prepare: PrepareConfig,
    evaluation: tuple[PreparedSource, ...],
    normalization: tuple[TextNormalization, ...],
) -> Iterator[Step]:
    """Normalize evaluation prompts like training samples, or no overlap would be found."""
    if evaluation:
        prompts = (
            normalization[0].apply(item) if normalization else item
            for source in evaluation
            for item in read_samples(source)
            if isinstance(item, Sample)
        )
        yield Decontamination(prompts, num_words=prepare.leak_words)


def _comparisons(prepare: PrepareConfig, store: SampleStore, dataset: str) -> tuple[Step, ...]:
    if prepare.duplicates == "keep":
        return ()
    exact = ExactDeduplication(store, dataset=dataset)
    if prepare.duplicates == "exact":
        return (exact,)
    return (exact, NearDeduplication(store, dataset=dataset, similarity=prepare.near_similarity))
