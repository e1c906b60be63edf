"""Text generation: a story of three sentences about a hero and a thing.

A good story names both, does not repeat itself, and comes to an end. A configuration names rows by
import path: `data.path=rlhf_ray.recipes.stories:requests`. The rows are the same every time.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from rlhf_ray.rewards.protocol import RewardSample

HEROES = ("fox", "bear", "girl", "boy", "king", "hen", "mouse", "sailor")
THINGS = ("drum", "map", "lamp", "boat", "key", "kite", "ring", "bell")
BEGINNINGS = ("Once there was a {hero}.", "Long ago there lived a {hero}.", "A {hero} woke up.")
MIDDLES = (
    "The {hero} found a {thing}.",
    "One day a {thing} fell from the sky.",
    "A friend came with a {thing}.",
)
ENDINGS = ("They lived happily ever after.", "And that was the end.", "Then all went home.")

_HELD_OUT_EVERY = 5
_GOOD_SHARE = 0.4
_NUM_DEMONSTRATIONS = 8_000
_PAIRS = tuple(itertools.product(HEROES, THINGS))


def requests() -> Iterator[dict[str, str]]:
    """Requests to train on, as `prompt`, with `hero` and `thing`."""
    return (_row(*pair) for number, pair in enumerate(_PAIRS) if number % _HELD_OUT_EVERY)


def held_out_requests() -> Iterator[dict[str, str]]:
    """Requests for pairs of hero and thing that no other row asks for."""
    return (_row(*pair) for pair in _PAIRS[::_HELD_OUT_EVERY])


def demonstrations() -> Iterator[dict[str, str]]:
    """Requests with stories; 60 % have a fault: no end, a repetition, another hero or thing."""
    dice = random.Random(2)
    rows = list(requests())
    for _ in range(_NUM_DEMONSTRATIONS):
        row = dice.choice(rows)
        yield {"prompt": row["prompt"], "answer": _story(dice, row["hero"], row["thing"])}


def vocabulary() -> Iterator[str]:
    """Every text that a tokenizer for this task should know."""
    for hero, thing in _PAIRS:
        yield _row(hero, thing)["prompt"]
        for part in (*BEGINNINGS, *MIDDLES, *ENDINGS):
            yield part.format(hero=hero, thing=thing)


def is_good(sample: RewardSample) -> float:
    """Reward function: the share of four virtues, 1.0 for a good story.

    The story names the hero, names the thing, repeats no sentence, and ends with one of `ENDINGS`.
    A story that was cut off scores 0.
    """
    if sample.finish_reason != "stop":
        return 0.0
    sentences = [s.strip() for s in sample.response.split(".") if s.strip()]
    words = {word for sentence in sentences for word in sentence.lower().split()}
    virtues = (
        sample.columns["hero"] in words,
        sample.columns["thing"] in words,
        len(sentences) > 1 and len(set(sentences)) == len(sentences),
        bool(sentences) and f"{sentences[-1]}." in ENDINGS,
    )
    return sum(virtues) / len(virtues)


def is_perfect(sample: RewardSample) -> float:
    """Reward function: 1.0 if the story has all virtues."""
    return float(is_good(sample) == 1.0)


def _row(hero: str, thing: str) -> dict[str, str]:
    return {"prompt": f"A story about a {hero} and a {thing}.", "hero": hero, "thing": thing}


def _story(dice: random.Random, hero: str, thing: str) -> str:
    parts = [dice.choice(BEGINNINGS), dice.choice(MIDDLES), dice.choice(ENDINGS)]
    told = {"hero": hero, "thing": thing}
    if dice.random() >= _GOOD_SHARE:
        fault = dice.choice(("no end", "repetition", "another hero", "another thing"))
        if fault == "no end":
            parts.pop()
        elif fault == "repetition":
            parts[2] = parts[1]
        elif fault == "another hero":
            told["hero"] = dice.choice([other for other in HEROES if other != hero])
        else:
            told["thing"] = dice.choice([other for other in THINGS if other != thing])
    return " ".join(part.format(**told) for part in parts)
