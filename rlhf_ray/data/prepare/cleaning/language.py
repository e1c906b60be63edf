"""Removal of samples in other languages."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.prepare.conversion.contents import Removal, Sample, removal_of
from rlhf_ray.data.prepare.libraries import library
from rlhf_ray.data.rows import known_names

WRONG_LANGUAGE = "wrong language"
# The library's class for numbers, markup and the like.
_NO_LANGUAGE = "zxx"
# The beginning of a long text is enough to identify its language.
_MAX_CHARACTERS = 4000


class LanguageFilter:
    """Removes a sample whose texts, read as one, are in another language with high confidence.

    py3langid (Barbaresi; after Lui and Baldwin 2012, langid.py), whose model is in its package.

    Args:
        keep: ISO 639-1 codes.
        confidence: least probability, among all languages, of an identification that counts.
        min_characters: shorter samples are kept, because their language cannot be identified.

    Raises:
        RequestError: the library is missing, or does not know one of the languages.
    """

    def __init__(self, keep: Sequence[str], *, confidence: float, min_characters: int) -> None:
        langid = library("py3langid.langid", key="prepare.languages")
        self._identifier = langid.LanguageIdentifier.from_model_file(
            langid.MODEL_FILE, norm_probs=True
        )
        known = [label for label in self._identifier.labels if label != _NO_LANGUAGE]
        for code in keep:
            if code not in known:
                raise RequestError(
                    f"prepare.languages has {code!r}, which is not known; "
                    f"{known_names(code, known)}"
                )
        self._keep = {*keep, _NO_LANGUAGE}
        self._confidence = confidence
        self._min_characters = min_characters

    def apply(self, sample: Sample) -> Sample | Removal:
        text = "\n".join(sample.content.texts())
        if len(text) < self._min_characters:
            return sample
        language, confidence = self._identifier.classify(text[:_MAX_CHARACTERS])
        if language in self._keep or confidence < self._confidence:
            return sample
        return removal_of(sample, WRONG_LANGUAGE, f"{language}, {confidence:.2f} sure")
