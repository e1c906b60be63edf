"""Personal data in samples: mail addresses, telephone numbers and card numbers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.prepare.cleaning.steps import Notes
from rlhf_ray.data.prepare.conversion.contents import Removal, Sample, removal_of
from rlhf_ray.data.prepare.libraries import library

PERSONAL_DATA = "personal data"
MASKS = {
    "mail address": "<MAIL_ADDRESS>",
    "card number": "<CARD_NUMBER>",
    "telephone number": "<TELEPHONE_NUMBER>",
}
_MAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z]{2,24}(?![\w-])"
)
# 13 to 19 digits (ISO/IEC 7812) in one run, or in groups by single spaces or hyphens.
_CARD = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
# A cheap test before the matcher, which takes milliseconds, while most texts have no number.
# Without a region only numbers with a country code can be found.
_MIGHT_BE_PHONE = re.compile(r"\d(?:[ ().\-/]{0,3}\d){6}")
_MIGHT_BE_INTERNATIONAL = re.compile(r"[+＋][ (]{0,2}\d(?:[ ().\-/]{0,3}\d){6}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A piece of personal data: text[start:end]."""

    kind: str
    start: int
    end: int


class PersonalDataFinder:
    """Finds personal data. Where two kinds overlap, the first in the order of `MASKS` counts.

    A telephone number must fit the numbering plan of its country (`phonenumbers`, a port of
    Google's libphonenumber). A card number must pass the Luhn check (`python-stdnum`), which nine
    of ten other numbers fail.

    Args:
        phone_region: ISO 3166 code of the country whose national numbers count, or None.

    Raises:
        RequestError: a library is missing, or does not know the region.
    """

    def __init__(self, phone_region: str | None) -> None:
        self._phones = library("phonenumbers", key="prepare.personal_data")
        self._luhn = library("stdnum.luhn", key="prepare.personal_data")
        if phone_region is not None and phone_region not in self._phones.SUPPORTED_REGIONS:
            raise RequestError(
                f"prepare.phone_region is {phone_region!r}; it must be the ISO 3166 code of a "
                "country, in capitals, such as US or DE"
            )
        self._region = phone_region
        self._might_be = _MIGHT_BE_INTERNATIONAL if phone_region is None else _MIGHT_BE_PHONE

    def find(self, text: str) -> list[Finding]:
        """Findings in the order of the text, without overlaps."""
        found: list[Finding] = []
        for finding in (*self._mails(text), *self._cards(text), *self._numbers(text)):
            if all(finding.end <= other.start or finding.start >= other.end for other in found):
                found.append(finding)
        return sorted(found, key=lambda finding: finding.start)

    def _mails(self, text: str) -> Iterator[Finding]:
        if "@" in text:
            for match in _MAIL.finditer(text):
                yield Finding(kind="mail address", start=match.start(), end=match.end())

    def _cards(self, text: str) -> Iterator[Finding]:
        for match in _CARD.finditer(text):
            digits = re.sub(r"\D", "", match[0])
            if len(set(digits)) > 1 and self._luhn.is_valid(digits):
                yield Finding(kind="card number", start=match.start(), end=match.end())

    def _numbers(self, text: str) -> Iterator[Finding]:
        if self._might_be.search(text):
            for match in self._phones.PhoneNumberMatcher(text, self._region):
                yield Finding(kind="telephone number", start=match.start, end=match.end)


def masked(text: str, findings: list[Finding]) -> str:
    """The text with every finding replaced by the name of its kind."""
    parts, at = [], 0
    for finding in findings:
        parts += [text[at : finding.start], MASKS[finding.kind]]
        at = finding.end
    return "".join([*parts, text[at:]])


class PersonalDataFilter:
    """Counts personal data and, if asked, masks it or removes its samples.

    Args:
        action: report, mask or remove.
    """

    def __init__(self, finder: PersonalDataFinder, *, action: str, notes: Notes) -> None:
        assert action in ("report", "mask", "remove"), action
        self._finder = finder
        self._action = action
        self._notes = notes

    def apply(self, sample: Sample) -> Sample | Removal:
        findings = {text: self._finder.find(text) for text in dict.fromkeys(sample.content.texts())}
        kinds = [finding.kind for found in findings.values() for finding in found]
        if not kinds:
            return sample
        for kind in kinds:
            self._notes.add(sample.source, f"{kind} found")
        if self._action == "remove":
            return removal_of(sample, PERSONAL_DATA, ", ".join(sorted(set(kinds))))
        if self._action == "report":
            return sample
        self._notes.add(sample.source, "samples masked")
        content = sample.content.mapped(lambda text: masked(text, self._finder.find(text)))
        return dataclasses.replace(sample, content=content)
