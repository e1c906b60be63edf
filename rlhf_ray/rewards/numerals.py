"""Numbers in text, each read whole or not at all.

Half a number is a wrong number: "1e5" is not 5, "3/4" is not 4, "1,5" is not 5. A form that has no
certain reading, such as a time or a version, has no value. Imported by the process that runs the
functions, so nothing here may import torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_MINUS = "\u2212\u2013\u2010\u2011\ufe63\uff0d-"
_SIGN = rf"[{re.escape(_MINUS)}+]"
_THIN_SPACES = "\u00a0\u2009\u202f"
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b"
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")

# Digits with whatever may stand between the digits of one number: points, commas, LaTeX's {,}.
_BETWEEN = rf"(?:[.,_'\u2019:{_THIN_SPACES}]|\{{,\}}|\\[,!;:])(?=[0-9])"
_RUN = rf"(?:(?<![\w.)\]])\.)?[0-9](?:[0-9]|{_BETWEEN})*"
_POWER = rf"(?:\s?(?:[x\u00d7*\u00b7]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?{_SIGN}?[0-9]+\}}?)"
_NUMERAL = re.compile(
    # A sign belongs to the number, unless a number, word or bracket precedes it: "12-5" ends in 5.
    # Behind a space it does only after a relation or an opening bracket: "= - 5".
    rf"(?:(?:(?<![0-9A-Za-z_.)\]}}])(?P<sign>{_SIGN})|(?<=[=\u2248(])\s?(?P<far>{_SIGN})\s?))?"
    r"(?:\\?[$\u20ac\u00a3\u00a5\u20b9]\s?(?P<inner>[-\u2212])?)?"
    r"(?:0[xX](?P<hex>[0-9a-fA-F]+)\b"
    # Groups of three behind spaces: thousands or several numbers, which is not certain.
    r"|(?P<spaced>(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?:[.,][0-9]+)?(?![0-9]))"
    r"|\\[dt]?frac\{(?P<upper>[^{}]{1,40})\}\{(?P<lower>[^{}]{1,40})\}"
    rf"|(?:(?P<whole>[0-9]+)\s(?=[0-9]+/[0-9]))?(?P<run>{_RUN})"
    rf"(?:\.?[eE](?P<exponent>{_SIGN}?[0-9]+)(?![0-9A-Za-z_]|[.,][0-9])|(?P<power>{_POWER}))?"
    rf"(?P<over>(?:\s?/\s?{_RUN})*)"
    rf"(?P<rest>[eE]{_SIGN}?[0-9][0-9A-Za-z_.,]*|\s?(?:\^|\*\*)\s?[\w{{({_MINUS}]+|[{_SUPERSCRIPTS}]+)?)"
)
# Longer numbers and exponents are no answers, and would take long to compute with.
_MAX_CHARACTERS, _MAX_EXPONENT = 1000, 400

_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_POINTED = re.compile(r"[0-9]{1,3}(?:(?P<mark>[,_' ])[0-9]{3})(?:(?P=mark)[0-9]{3})*(?:\.[0-9]+)?")
_UNDERSCORED = re.compile(r"[0-9]+(?:_[0-9]+)+(?:\.[0-9]+)?")
_WITH_COMMA = re.compile(
    r"(?:[0-9]+|[0-9]{1,3}(?:(?P<mark>[.' ])[0-9]{3})(?:(?P=mark)[0-9]{3})*),[0-9]+"
)
_DOTTED = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Numeral:
    """A number in a text.

    Attributes:
        start, end: the [start, end) of its characters, with sign and currency.
        value: None if its form has no certain reading.
    """

    start: int
    end: int
    value: Fraction | None


def last_number(text: str) -> Fraction | None:
    """The last number in a text; None if there is none, or the last one cannot be read."""
    last = None
    for match in _matches(_prepared(text)):
        last = match
    return None if last is None else _value(last)


def read_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else; None if it is not."""
    prepared = _prepared(text).strip()
    match = _NUMERAL.fullmatch(prepared)
    return None if match is None else _value(match)


def numerals(text: str) -> Iterator[Numeral]:
    """Every number in a text, from left to right.

    Characters such as the one for a half are not read, so that places are those of `text`.
    """
    for match in _matches(text):
        yield Numeral(start=match.start(), end=match.end(), value=_value(match))


def _matches(text: str) -> Iterator[re.Match[str]]:
    return _NUMERAL.finditer(text)


def _prepared(text: str) -> str:
    """Write the characters of fractions (one half) with a slash."""
    return _VULGAR.sub(
        lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), text
    )


def _value(match: re.Match[str]) -> Fraction | None:
    if match["rest"] or match["spaced"] or len(match[0]) > _MAX_CHARACTERS:
        return None
    value = _unsigned(match)
    signs = [sign for sign in (match["sign"], match["far"], match["inner"]) if sign]
    if value is None or len(signs) > 1:
        return None
    return -value if signs and signs[0] in _MINUS else value


def _unsigned(match: re.Match[str]) -> Fraction | None:
    if match["hex"]:
        return Fraction(int(match["hex"], 16))
    if match["upper"]:
        return _ratio(read_number(match["upper"]), read_number(match["lower"]))
    value = _digits(match["run"])
    exponent = _exponent(match)
    if value is None or exponent is None or abs(exponent) > _MAX_EXPONENT:
        return None
    value *= Fraction(10) ** exponent
    if match["over"]:
        _, *lower = match["over"].split("/")
        # Two slashes: a date.
        value = _ratio(value, _digits(lower[0].strip())) if len(lower) == 1 else None
    if match["whole"] and value is not None:
        return int(match["whole"]) + value if value < 1 else None
    return value


def _exponent(match: re.Match[str]) -> int | None:
    said = match["exponent"]
    if match["power"]:
        said = re.split(r"\^|\*\*", match["power"])[-1].strip(" {}")
    if not said:
        return 0
    digits = said.lstrip(f"+{_MINUS}")
    if len(digits) > len(str(_MAX_EXPONENT)):
        return None
    return -int(digits) if said[0] in _MINUS else int(digits)


def _ratio(upper: Fraction | None, lower: Fraction | None) -> Fraction | None:
    return upper / lower if upper is not None and lower else None


def _digits(run: str) -> Fraction | None:
    """The value of digits with separators.

    A comma stands before thousands where three digits follow it ("1,234"), else before decimals
    ("0,5", "1234,567", "1.234,50").
    """
    run = run.replace("{,}", ",").replace("\u2019", "'")
    run = re.sub(r"\\[,!;:]|[\u00a0\u2009\u202f]", " ", run)
    has_leading_zero = re.match(r"0[,' .]", run) is not None
    if _PLAIN.fullmatch(run):
        return Fraction(run)
    if _UNDERSCORED.fullmatch(run):
        return Fraction(run.replace("_", ""))
    if _POINTED.fullmatch(run) and not has_leading_zero:
        return Fraction(re.sub(r"[,' ]", "", run))
    if _WITH_COMMA.fullmatch(run):
        whole, _, decimals = run.partition(",")
        return Fraction(f"{re.sub(r'[. ' + chr(39) + ']', '', whole)}.{decimals}")
    if _DOTTED.fullmatch(run):
        return Fraction(run.replace(".", ""))
    return None
