"""Deduplication: removal of equal samples and of nearly equal samples."""

from __future__ import annotations

import hashlib
from array import array

from rlhf_ray.data.prepare.cleaning.words import words_of
from rlhf_ray.data.prepare.conversion.contents import FeedbackContent, Removal, Sample, removal_of
from rlhf_ray.data.prepare.libraries import library
from rlhf_ray.data.prepare.reading import digest
from rlhf_ray.data.prepare.store import SampleStore

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near duplicate"
_NUM_PERMUTATIONS = 128
_SHINGLE_WORDS = 3
# Share of pairs exactly at the threshold that no band may find; more similar pairs are found
# with a higher probability.
_MAX_MISSED = 0.05


class ExactDeduplication:
    """Removes a sample whose texts all equal those of an earlier sample of the data set."""

    def __init__(self, store: SampleStore, *, dataset: str) -> None:
        self._store = store
        self._dataset = dataset

    def apply(self, sample: Sample) -> Sample | Removal:
        key = bytes.fromhex(digest(sample.content))
        first = self._store.first_with(self._dataset, key, sample.sample_id)
        return sample if first is None else removal_of(sample, DUPLICATE, f"of {first}")


class NearDeduplication:
    """Removes a sample that shares most of its word groups with an earlier one of the data set.

    MinHash (Broder 1997) over groups of three words, with rensa: the share of equal entries of
    two signatures estimates the Jaccard similarity of the groups, with a standard error of at
    most 0.045. Candidates come from bands (Leskovec, Rajaraman, Ullman, Mining of Massive
    Datasets, ch. 3.4), and the estimate decides.

    Args:
        similarity: least Jaccard similarity of nearly equal samples.
    """

    def __init__(self, store: SampleStore, *, dataset: str, similarity: float) -> None:
        self._store = store
        self._dataset = dataset
        self._similarity = similarity
        self._rows = band_rows(similarity)
        self._rensa = library("rensa", key="prepare.duplicates=near")

    def apply(self, sample: Sample) -> Sample | Removal:
        signature = self._signature(sample)
        bands = self._bands(signature, _label_of(sample))
        best, other = 0.0, ""
        for sample_id, blob in self._store.with_bands(bands):
            similarity = _share_equal(signature, array("I", blob))
            if similarity > best:
                best, other = similarity, sample_id
        if best >= self._similarity:
            return removal_of(sample, NEAR_DUPLICATE, f"of {other}, similarity {best:.2f}")
        self._store.add_signature(sample.sample_id, signature.tobytes(), bands)
        return sample

    def _signature(self, sample: Sample) -> array[int]:
        words = words_of("\n".join(sample.content.texts()))
        groups = [
            " ".join(words[start : start + _SHINGLE_WORDS])
            for start in range(max(1, len(words) - _SHINGLE_WORDS + 1))
        ]
        hasher = self._rensa.RMinHash(num_perm=_NUM_PERMUTATIONS, seed=1)
        hasher.update(groups)
        return array("I", hasher.digest())

    def _bands(self, signature: array[int], label: str) -> list[int]:
        """A number for each band; samples with the same number agree in all rows of the band."""
        bands = []
        for start in range(0, _NUM_PERMUTATIONS - self._rows + 1, self._rows):
            rows = signature[start : start + self._rows].tobytes()
            key = b"%s%s/%d/%s" % (self._dataset.encode(), label.encode(), start, rows)
            hashed = hashlib.blake2b(key, digest_size=8).digest()
            bands.append(int.from_bytes(hashed, "big", signed=True))
        return bands


def band_rows(similarity: float) -> int:
    """Rows per band: the most that still find all but 5 % of the pairs of this similarity.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s^r)^b.
    """
    fitting = [
        rows
        for rows in range(1, _NUM_PERMUTATIONS + 1)
        if (1 - similarity**rows) ** (_NUM_PERMUTATIONS // rows) <= _MAX_MISSED
    ]
    return max(fitting)


def _label_of(sample: Sample) -> str:
    """The label of feedback: the same answer as good and as bad is not twice the same sample."""
    content = sample.content
    return f"/{content.good}" if isinstance(content, FeedbackContent) else ""


def _share_equal(first: array[int], second: array[int]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
