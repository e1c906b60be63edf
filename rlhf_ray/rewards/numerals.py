"""Numbers in text, each read whole or not at all.

Half a number is a wrong number: "1e5" is not 5, "3/4" is not 4, "2\\pi" is not 2. A form that has
no certain reading, such as a time, a root or a version, has no value. Imported by the process that
runs the functions, so nothing here may import torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from rlhf_ray.rewards.operands import operand_end, read_operand

_MINUS = "\u2212\u2013\u2010\u2011\ufe63\uff0d-"
_SIGN = rf"[{re.escape(_MINUS)}+]"
_EITHER_SIGN = r"\u00b1|\u2213|\\pm|\\mp"
_THIN_SPACES = "\u00a0\u2009\u202f"
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b"
_VULGARS = "\u00bc-\u00be\u2150-\u215e"
_VULGAR = re.compile(f"[{_VULGARS}]")
# Of the same length, so that places stay.
_FULL_WIDTH = {0xFF01 + offset: 0x21 + offset for offset in range(94)}

# Digits with whatever may stand between the digits of one number: points, commas, LaTeX's {,}.
_BETWEEN = rf"(?:[.,_'\u2019:{_THIN_SPACES}]|\{{,\}}|\\[,!;:])(?=[0-9])"
_RUN = rf"(?:(?<![\w.)\]])\.)?[0-9](?:[0-9]|{_BETWEEN})*"
_POWER = rf"(?:\s?(?:[x\u00d7*\u00b7]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?{_SIGN}?[0-9]+\}}?)"
# Two stars are also the end of bold text; degrees and ordinals ("5^{th}") are no powers.
_RAISE = (
    r"(?:\s?\^(?=\s?[\w{(\\\u2212-])|\*\*(?=[\w(-])|\s\*\*\s(?=[\w(-]))"
    r"(?!\s?\{?\s?\\circ)(?!\{?\\?(?:text\{)?(?:st|nd|rd|th)\b)"
)
_SCALES = {
    "hundred": 2,
    "thousand": 3,
    "lakh": 5,
    "million": 6,
    "crore": 7,
    "billion": 9,
    "trillion": 12,
}
_SCALE = rf"(?:[\s-]?(?i:{'|'.join(_SCALES)})s?(?![A-Za-z]))"
_UNIT_NAMES = r"\\(?:text|mathrm|mbox|textrm|operatorname)\s?\{[^{}0-9]{0,40}\}"
_TOKEN = re.compile(
    # Exponents and indices of units and names: "25 cm^2" is 25.
    rf"(?P<name>(?:{_UNIT_NAMES}|(?<=[A-Za-z\u03bc\u00b5\u03a9\u03c0]))(?P<raised>\^\s?|\*\*)?"
    rf"(?(raised)\{{?\(?{_SIGN}?[0-9]+\)?\}}?|_(?:\{{[^{{}}]{{0,40}}\}}|[0-9]+)))"
    # A bracket to a power, and functions, with all that they are applied to.
    rf"|(?P<raised_bracket>(?<=[)\]}}|]){_RAISE})"
    r"|(?P<function>[\u221a\u221b\u221c]|\\(?:sqrt|[dt]?binom|log|ln|lg|exp|sin|cos|tan|cot|sec|csc)"
    r"(?![A-Za-z])|(?<![A-Za-z\\])(?:(?:sqrt|cbrt|log|log2|log10|ln|exp|sin|cos|tan)"
    r"(?=[(_\[])|sqrt(?=\s?[0-9])))"
    # A sign belongs to the number, unless a number, word or bracket precedes it: "12-5" ends in 5.
    # Behind a space it does only after a relation or an opening bracket: "= - 5".
    rf"|(?P<number>(?:(?P<either>(?:{_EITHER_SIGN})\s?)|(?<![0-9A-Za-z_.)\]}}])(?P<sign>{_SIGN}{{1,2}})"
    rf"|(?<=[=\u2248(])\s?(?P<far>{_SIGN})\s?)?"
    r"(?P<currency>\\?[$\u20ac\u00a3\u00a5\u20b9]\s?(?P<inner>[-\u2212])?|(?<![A-Za-z])"
    r"(?:USD|EUR|GBP|CAD|AUD|INR|US\\?\$)\s?(?=[0-9]))?"
    r"(?:0[xX](?P<hex>[0-9a-fA-F]+)\b|0[bB](?P<bin>[01]+)\b|0[oO](?P<oct>[0-7]+)\b"
    # Groups of three behind spaces: thousands or several numbers, which is not certain.
    r"|(?P<spaced>(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?:[.,][0-9]+)?(?![0-9]))"
    r"|(?P<latex>(?:(?P<times>[0-9]+)\s?)?\\(?:[dtcs]?frac|nicefrac)(?![A-Za-z]))"
    rf"|(?:(?P<whole>[0-9]+)\s(?P<plus>and\s)?(?=[0-9]+/[0-9]))?(?P<run>{_RUN})"
    rf"(?:\.?[eE](?P<exponent>{_SIGN}?[0-9]+)(?![0-9A-Za-z_]|[.,][0-9])|(?P<power>{_POWER}))?"
    rf"(?P<over>(?:\s?/\s?{_RUN})*)"
    rf"(?P<scale>{_SCALE}+(?P<more>,?\s(?:and\s)?{_RUN}{_SCALE}*)*)?))"
    # Digits of other scripts are seen, but not read.
    r"|(?P<foreign>(?![0-9])\d[\d.,]*)|(?P<command>\\[A-Za-z]+)"
)
# What follows a number and changes its value; its operand is a part of the number.
_RAISED = re.compile(_RAISE)
_DIVIDED = re.compile(r"\s?/\s?(?=\(|\{|\\(?!text|math|mbox)|[nxyz](?![A-Za-z]))")
_CHANGED = re.compile(
    rf"[eE]{_SIGN}?[0-9][0-9A-Za-z_.,]*|[{_SUPERSCRIPTS}{_VULGARS}]+|\s[{_VULGARS}]"
    # A variable, Euler's form of thousands and millions, and Chinese ones.
    r"|(?:[kKMBTinxyz]|(?:\s?(?:bn|mn|mio)))(?![A-Za-z])|\s?[\u5343\u767e\u4e07\u842c\u4ebf\u5104]"
    r"|\s?(?:(?:[*\u00b7\u00d7]|\\cdot|\\times)\s?)?(?:\\pi(?![A-Za-z])|\u03c0|\bpi\b|pi\b)"
    r"|\s?(?=\\sqrt|\u221a|\\[lg]?n(?![A-Za-z])|\\log)"
    r"|\sand\s(?:an?|one|two|three)[\s-](?:half|halves|thirds?|quarters?|fourths?|fifths?)\b"
)
_UNIT_POWER = re.compile(r"\s?(?:[kcdm\u00b5\u03bcn]?m|ft|in|yd|mi|s)[234](?![0-9A-Za-z])")
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
    for numeral in numerals(_prepared(text)):
        last = numeral
    return None if last is None else last.value


def read_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else; None if it is not."""
    prepared = _prepared(text).strip()
    first = next(numerals(prepared), None)
    is_all = first is not None and (first.start, first.end) == (0, len(prepared))
    return first.value if first is not None and is_all else None


def numerals(text: str) -> Iterator[Numeral]:
    """Every number in a text, from left to right.

    Characters such as the one for a half are not read, so that places are those of `text`.
    """
    text = text.translate(_FULL_WIDTH)
    place, command_end = 0, -1
    while match := _TOKEN.search(text, place):
        place = match.end()
        if match["command"] is not None:
            command_end = place
        elif match["name"] is None:
            numeral = _numeral(text, match, follows_command=command_end == match.start())
            place = max(place, numeral.end)
            if any(map(str.isdigit, text[numeral.start : numeral.end])):
                yield numeral
            if unit := _UNIT_POWER.match(text, place):
                place = unit.end()


def _numeral(text: str, match: re.Match[str], *, follows_command: bool) -> Numeral:
    start, end = match.span()
    if match["number"] is None:
        if match["foreign"] is None:
            end = operand_end(text, end)
        return Numeral(start=start, end=end, value=None)
    upper = lower = None
    if match["latex"]:
        upper, end = read_operand(text, end)
        lower, end = read_operand(text, end)
    before = text[max(start - 2, 0) : start]
    # Behind a letter it is a part of a name; behind a slash or a digit, of a longer number.
    is_part = before[-1:].isalpha() and before[-1:].isascii() and not follows_command
    is_part |= before.rstrip().endswith(("/", "\u03c0")) or before[-1:].isdigit()
    value: Fraction | None = None
    is_whole = True
    for changes in (_RAISED, _CHANGED, _DIVIDED):
        if found := changes.match(text, end):
            is_whole, end = False, found.end()
            if changes is not _CHANGED:
                end = operand_end(text, end)
    if is_whole and not is_part and end - start <= _MAX_CHARACTERS:
        value = _signed(match, upper, lower)
    return Numeral(start=start, end=end, value=value)


def _prepared(text: str) -> str:
    """Write the characters of fractions (one half) with a slash."""
    return _VULGAR.sub(
        lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), text
    )


def _signed(match: re.Match[str], upper: str | None, lower: str | None) -> Fraction | None:
    if match["spaced"] or match["either"] or match["more"] or match["plus"]:
        return None
    signs = "".join(match[group] or "" for group in ("sign", "far", "inner"))
    value = None if len(signs) > 1 else _unsigned(match, upper, lower)
    return -value if value is not None and signs and signs in _MINUS else value


def _unsigned(match: re.Match[str], upper: str | None, lower: str | None) -> Fraction | None:
    for name, base in (("hex", 16), ("bin", 2), ("oct", 8)):
        if match[name]:
            return Fraction(int(match[name], base))
    if match["latex"]:
        if upper is None or lower is None:
            return None
        return _mixed(match["times"], _ratio(read_number(upper), read_number(lower)))
    value = _digits(match["run"])
    exponent = _exponent(match)
    if value is None or exponent is None or abs(exponent) > _MAX_EXPONENT:
        return None
    value *= Fraction(10) ** exponent
    if match["over"]:
        _, *under = match["over"].split("/")
        # Two slashes: a date.
        value = _ratio(value, _digits(under[0].strip())) if len(under) == 1 else None
    value = _mixed(match["whole"], value)
    words = re.findall("|".join(_SCALES), (match["scale"] or "").lower())
    power = sum(_SCALES[word] for word in words)
    return None if value is None or power > _MAX_EXPONENT else value * 10**power


def _mixed(whole: str | None, part: Fraction | None) -> Fraction | None:
    """A mixed number, "1 1/2"; the fraction alone if there is no whole part."""
    if not whole or part is None:
        return part
    return int(whole) + part if 0 <= part < 1 else None


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
