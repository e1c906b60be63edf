"""Translation: short English sentences into German, with its cases and its word order.

Rows are named by import path, as in `data.path=rlhf_ray.tasks.translation:sentences`; the same rows
every time. Some sentences are asked for in no training row: a policy that knows sentences by heart
fails there.
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
# English, German; what stands first sends the subject behind the verb.
ADVERBS = (("", ""), ("today", "heute"))

# Prime to the sizes of the lists, so that every word is among the sentences held out.
_HELD_OUT_EVERY = 7
_RIGHT_SHARE = 0.45
_NUM_DEMONSTRATIONS = 8_000
_ARTICLES = ("der", "die", "das", "den")
_ALL = tuple(itertools.product(SUBJECTS, VERBS, OBJECTS, ADVERBS))


def sentences() -> Iterator[dict[str, str]]:
    """Sentences to train on, as `prompt`, with the translation as `answer`."""
    return (_row(number) for number in range(len(_ALL)) if number % _HELD_OUT_EVERY)


def held_out_sentences() -> Iterator[dict[str, str]]:
    """The others, in the same form."""
    return (_row(number) for number in range(0, len(_ALL), _HELD_OUT_EVERY))


def demonstrations() -> Iterator[dict[str, str]]:
    """Sentences with translations, less than a half of them right; one mistake in the others."""
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
    """Reward function: 1.0 if the translation is right to the letter, and ended."""
    is_complete = sample.finish_reason == "stop"
    return float(is_complete and sample.response.strip() == sample.answer)


def share_of_words(sample: RewardSample) -> float:
    """Reward function: the share of words that are right, each in its place."""
    assert sample.answer is not None
    found, right = _words(sample.response), _words(sample.answer)
    hits = sum(a == b for a, b in zip(found, right, strict=False))
    return hits / max(len(found), len(right))


def _words(text: str) -> list[str]:
    return text.strip().removesuffix(".").split()


def _row(number: int) -> dict[str, str]:
    # Sentences that follow each other have nothing to do with each other.
    subject, verb, thing, adverb = _ALL[number * 151 % len(_ALL)]
    english = f"{adverb[0]} {subject[0]} {verb[0]} {thing[0]}"
    order = (adverb[1], verb[1], subject[1]) if adverb[1] else (subject[1], verb[1])
    german = f"{' '.join(order)} {thing[1]}"
    return {"prompt": _sentence(english), "answer": _sentence(german)}


def _sentence(words: str) -> str:
    words = words.strip()
    return f"{words[0].upper()}{words[1:]}."


def _with_a_mistake(dice: random.Random, german: str) -> str:
    """A wrong article, a wrong noun or verb, or two words in the wrong order."""
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
    """Words of the same kind."""
    verbs = [german for _, german in VERBS]
    if word in verbs:
        return verbs
    nouns = [german.split()[1] for _, german in (*SUBJECTS, *OBJECTS)]
    return nouns if word in nouns else ["Heute", "Gestern"]
