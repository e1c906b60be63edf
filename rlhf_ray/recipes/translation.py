"""Translation: short English sentences into German, with its cases and its word order.

A configuration names rows by import path: `data.path=rlhf_ray.recipes.translation:sentences`. The
rows are the same every time. Some sentences are in no training row: a policy that only memorises
sentences fails on them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from rlhf_ray.rewards.protocol import RewardSample

# English, German in the nominative.
SUBJECTS = (
    ("the man", "der Mann"),
    ("the woman", "die Frau"),
    ("the child", "das Kind"),
    ("the dog", "der Hund"),
    ("the cat", "die Katze"),
    ("the teacher", "der Lehrer"),
)
VERBS = (
    ("sees", "sieht"),
    ("buys", "kauft"),
    ("seeks", "sucht"),
    ("loves", "liebt"),
    ("finds", "findet"),
    ("paints", "malt"),
)
# English, German in the accusative.
OBJECTS = (
    ("the apple", "den Apfel"),
    ("the bread", "das Brot"),
    ("the house", "das Haus"),
    ("the car", "den Wagen"),
    ("the door", "die Tür"),
    ("the garden", "den Garten"),
)
# English, German; an adverb in front puts the subject behind the verb.
ADVERBS = (("", ""), ("today", "heute"))

# Coprime to the sizes of the lists, so that the held-out sentences have every word.
_HELD_OUT_EVERY = 7
_RIGHT_SHARE = 0.45
_NUM_DEMONSTRATIONS = 8_000
_ARTICLES = ("der", "die", "das", "den")
_ALL = tuple(itertools.product(SUBJECTS, VERBS, OBJECTS, ADVERBS))


def sentences() -> Iterator[dict[str, str]]:
    """Sentences to train on, as `prompt`, with the translation as `answer`."""
    return (_row(number) for number in range(len(_ALL)) if number % _HELD_OUT_EVERY)


def held_out_sentences() -> Iterator[dict[str, str]]:
    """Sentences to evaluate on, in the same form."""
    return (_row(number) for number in range(0, len(_ALL), _HELD_OUT_EVERY))


def demonstrations() -> Iterator[dict[str, str]]:
    """Sentences with translations, 45 % of them right; one mistake in each of the others."""
    dice = random.Random(2)
    rows = list(sentences())
    for _ in range(_NUM_DEMONSTRATIONS):
        row = dice.choice(rows)
        is_right = dice.random() < _RIGHT_SHARE
        yield row if is_right else {**row, "answer": _with_a_mistake(dice, row["answer"])}


def vocabulary() -> Iterator[str]:
    """Every text that a tokenizer for this task should know."""
    for row in (*sentences(), *held_out_sentences()):
        yield from row.values()


def is_right(sample: RewardSample) -> float:
    """Reward function: 1.0 for a finished translation that is right to the letter."""
    is_complete = sample.finish_reason == "stop"
    return float(is_complete and sample.response.strip() == sample.answer)


def share_of_words(sample: RewardSample) -> float:
    """Reward function: the share of words that are right, each at its position."""
    assert sample.answer is not None
    found, right = _words(sample.response), _words(sample.answer)
    hits = sum(a == b for a, b in zip(found, right, strict=False))
    return hits / max(len(found), len(right))


def _words(text: str) -> list[str]:
    return text.strip().removesuffix(".").split()


def _row(number: int) -> dict[str, str]:
    # A stride of 151 spreads similar sentences over the whole list.
    subject, verb, thing, adverb = _ALL[number * 151 % len(_ALL)]
    english = f"{adverb[0]} {subject[0]} {verb[0]} {thing[0]}"
    order = (adverb[1], verb[1], subject[1]) if adverb[1] else (subject[1], verb[1])
    german = f"{' '.join(order)} {thing[1]}"
    return {"prompt": _sentence(english), "answer": _sentence(german)}


def _sentence(words: str) -> str:
    words = words.strip()
    return f"{words[0].upper()}{words[1:]}."


def _with_a_mistake(dice: random.Random, german: str) -> str:
    """Put in a wrong article, a wrong noun or verb, or swap two words."""
    words = _words(german)
    place = dice.randrange(len(words))
    word = words[place]
    if word.lower() in _ARTICLES:
        wrong = dice.choice([a for a in _ARTICLES if a != word.lower()])
        words[place] = wrong.capitalize() if place == 0 else wrong
    elif dice.random() < 0.5 and 0 < place < len(words) - 1:
        words[place], words[place + 1] = words[place + 1], words[place]
    else:
        words[place] = dice.choice([w for w in _like(word) if w != word])
    return _sentence(" ".join(words))


def _like(word: str) -> list[str]:
    """Words of the same class: verbs, nouns or adverbs."""
    verbs = [german for _, german in VERBS]
    if word in verbs:
        return verbs
    nouns = [german.split()[1] for _, german in (*SUBJECTS, *OBJECTS)]
    return nouns if word in nouns else ["Heute", "Gestern"]
