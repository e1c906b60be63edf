"""Customer service: answers to requests about an order, in a helpful, a neutral or a rude tone.

An answer is an opener and a sentence that names the item. A tiny model learns all three tones from
demonstrations; preferences say which tone people want. A configuration names rows by import path:
`examples.path=rlhf_ray.recipes.customer_service:demonstrations`. The rows are the same every time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_ray.rewards.protocol import RewardSample

REQUESTS = (
    "Where is my {item}?",
    "My {item} is broken.",
    "Can I return the {item}?",
    "I did not order a {item}.",
    "When does the {item} come?",
)
ITEMS = (
    "kettle",
    "lamp",
    "jacket",
    "printer",
    "mirror",
    "blanket",
    "camera",
    "desk",
    "pillow",
    "radio",
    "sofa",
    "tablet",
)
# No training row has these items: a reward model that only memorises items fails on them.
OTHER_ITEMS = ("bicycle", "clock", "guitar", "heater")

HELPFUL, NEUTRAL, RUDE = "helpful", "neutral", "rude"
OPENERS = {
    HELPFUL: ("I am sorry about that.", "Thank you for asking.", "I am happy to help."),
    NEUTRAL: ("Hello.", "We have your message.", "This is the service desk."),
    RUDE: ("Not again.", "You again.", "What is it now?"),
}
SENTENCES = {
    HELPFUL: (
        "I will look after your {item} right away.",
        "Let me send you a new {item} today.",
        "I will call you about the {item} within the hour.",
    ),
    NEUTRAL: (
        "The {item} is in our system.",
        "Orders of a {item} take some time.",
        "See our page about the {item}.",
    ),
    RUDE: (
        "Your {item} is your own problem.",
        "Nobody here cares about the {item}.",
        "Stop asking about your {item}.",
    ),
}
# Share of the demonstrations in each tone, and how highly people rank the tone.
_SHARES = {HELPFUL: 0.45, NEUTRAL: 0.25, RUDE: 0.30}
_RANKS = {HELPFUL: 2, NEUTRAL: 1, RUDE: 0}
_MIXED_SHARE = 0.25
_FLIPPED_SHARE = 0.05

_NUM_TEXTS = 3_000
_NUM_DEMONSTRATIONS = 8_000
_NUM_PREFERENCES = 2_000
_NUM_OTHER_PREFERENCES = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer taken apart: the tones of its two parts, and the item that it names."""

    opener_tone: str
    sentence_tone: str
    item: str

    @property
    def rank(self) -> int:
        """Rank that people give the answer, from 0 to 4 (best)."""
        return _RANKS[self.opener_tone] + _RANKS[self.sentence_tone]


def requests() -> Iterator[dict[str, str]]:
    """Every request about every item, as `prompt`; `answer` is the item."""
    for item in ITEMS:
        for request in REQUESTS:
            yield {"prompt": request.format(item=item), "answer": item}


def texts() -> Iterator[dict[str, str]]:
    """Sentences of both sides in random order, as `text`, for pre-training."""
    dice = random.Random(1)
    for _ in range(_NUM_TEXTS):
        item, tone = dice.choice(ITEMS), dice.choice(tuple(_RANKS))
        parts = (*REQUESTS, *OPENERS[tone], *SENTENCES[tone])
        yield {"text": " ".join(part.format(item=item) for part in dice.sample(parts, 3))}


def demonstrations() -> Iterator[dict[str, str]]:
    """Requests with answers in one tone each, as `prompt` and `answer`."""
    dice = random.Random(2)
    for _ in range(_NUM_DEMONSTRATIONS):
        item = dice.choice(ITEMS)
        (tone,) = dice.choices(tuple(_SHARES), weights=tuple(_SHARES.values()))
        yield {"prompt": _request(dice, item), "answer": _answer(dice, tone, tone, item)}


def preferences() -> Iterator[dict[str, str]]:
    """Two answers to one request, as `prompt`, `chosen` and `rejected`; some labels are wrong."""
    return _preferences(random.Random(3), _NUM_PREFERENCES, ITEMS, flipped=_FLIPPED_SHARE)


def other_preferences() -> Iterator[dict[str, str]]:
    """Preferences about items that no other rows have, with every label right."""
    return _preferences(random.Random(4), _NUM_OTHER_PREFERENCES, OTHER_ITEMS, flipped=0.0)


def vocabulary() -> Iterator[str]:
    """Every text that a tokenizer for this task should know."""
    for item in (*ITEMS, *OTHER_ITEMS):
        for part in REQUESTS + sum((*OPENERS.values(), *SENTENCES.values()), ()):
            yield part.format(item=item)


def read_answer(text: str) -> Reply | None:
    """Take an answer apart; None where `text` is not an answer of this task."""
    for opener_tone, openers in OPENERS.items():
        for opener in openers:
            rest = text.strip().removeprefix(opener)
            if rest == text.strip():
                continue
            found = _read_sentence(rest.strip())
            if found is not None:
                sentence_tone, item = found
                return Reply(opener_tone=opener_tone, sentence_tone=sentence_tone, item=item)
    return None


def is_helpful(sample: RewardSample) -> float:
    """Reward function: 1.0 if both parts are helpful, the item is right and the text ended."""
    answer = _complete_answer(sample)
    tones = {answer.opener_tone, answer.sentence_tone} if answer else set()
    return float(tones == {HELPFUL})


def is_well_formed(sample: RewardSample) -> float:
    """Reward function: 1.0 for a finished answer of any tone about the right item."""
    return float(_complete_answer(sample) is not None)


def _complete_answer(sample: RewardSample) -> Reply | None:
    answer = read_answer(sample.response)
    is_complete = sample.finish_reason == "stop"
    return answer if is_complete and answer and answer.item == sample.answer else None


def _read_sentence(text: str) -> tuple[str, str] | None:
    for tone, sentences in SENTENCES.items():
        for sentence in sentences:
            before, after = (re.escape(part) for part in sentence.split("{item}"))
            match = re.fullmatch(f"{before}([a-z]+){after}", text)
            if match:
                return tone, match[1]
    return None


def _request(dice: random.Random, item: str) -> str:
    return dice.choice(REQUESTS).format(item=item)


def _answer(dice: random.Random, opener_tone: str, sentence_tone: str, item: str) -> str:
    opener, sentence = dice.choice(OPENERS[opener_tone]), dice.choice(SENTENCES[sentence_tone])
    return f"{opener} {sentence.format(item=item)}"


def _preferences(
    dice: random.Random, count: int, items: Sequence[str], *, flipped: float
) -> Iterator[dict[str, str]]:
    for _ in range(count):
        item = dice.choice(items)
        better, worse = _unequal_tones(dice)
        pair = [_answer(dice, *tones, item) for tones in (better, worse)]
        if dice.random() < flipped:
            pair.reverse()
        yield {"prompt": _request(dice, item), "chosen": pair[0], "rejected": pair[1]}


def _unequal_tones(dice: random.Random) -> tuple[tuple[str, str], tuple[str, str]]:
    """Tones (opener, sentence) of a better and a worse answer."""
    is_mixed = dice.random() < _MIXED_SHARE
    tones = tuple(_RANKS)
    while True:
        drawn = [dice.choices(tones, k=2) for _ in range(2)]
        pair = [(a, b if is_mixed else a) for a, b in drawn]
        ranks = [_RANKS[a] + _RANKS[b] for a, b in pair]
        if ranks[0] != ranks[1]:
            better = ranks.index(max(ranks))
            return pair[better], pair[1 - better]
