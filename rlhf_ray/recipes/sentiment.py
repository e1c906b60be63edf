"""Sentiment-controlled writing: a line about a topic, in the mood that the prompt asks for.

A configuration names rows by import path: `data.path=rlhf_ray.recipes.sentiment:requests`. The rows
are the same every time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from rlhf_ray.rewards.protocol import RewardSample

HAPPY, SAD = "happy", "sad"
TOPICS = (
    "sea",
    "forest",
    "city",
    "winter",
    "garden",
    "river",
    "school",
    "summer",
    "market",
    "village",
    "station",
    "island",
)
# In the demonstrations, but in no prompt of reinforcement learning.
OTHER_TOPICS = ("village", "station", "island")

LINES = {
    HAPPY: (
        "I love the {topic}, it is a joy to be there.",
        "What a bright and lovely {topic} this is!",
        "The {topic} makes me smile every day.",
        "We laughed and danced at the {topic}.",
    ),
    SAD: (
        "I cried at the {topic}, all alone.",
        "The {topic} is grey, cold and empty now.",
        "Nothing but tears is left of the {topic}.",
        "I miss the {topic}, it hurts to think of it.",
    ),
}
# Words that show the mood of a line.
WORDS = {
    HAPPY: frozenset({"love", "joy", "bright", "lovely", "smile", "laughed", "danced"}),
    SAD: frozenset({"cried", "alone", "grey", "cold", "empty", "tears", "miss", "hurts"}),
}
_REQUESTS = ("Write a {mood} line about the {topic}.", "The {topic}, please, and make it {mood}.")
_FOLLOWED_SHARE = 0.55
_NUM_DEMONSTRATIONS = 8_000


def requests() -> Iterator[dict[str, str]]:
    """Requests to train on, as `prompt`; `answer` is the mood, `topic` the topic."""
    return _requests([topic for topic in TOPICS if topic not in OTHER_TOPICS])


def held_out_requests() -> Iterator[dict[str, str]]:
    """Requests about `OTHER_TOPICS`, in the same form."""
    return _requests(OTHER_TOPICS)


def demonstrations() -> Iterator[dict[str, str]]:
    """Requests with lines, 55 % of them in the mood that the request asks for."""
    dice = random.Random(2)
    rows = list(_requests(TOPICS))
    for _ in range(_NUM_DEMONSTRATIONS):
        row = dice.choice(rows)
        is_followed = dice.random() < _FOLLOWED_SHARE
        mood = row["answer"] if is_followed else _other(row["answer"])
        line = dice.choice(LINES[mood]).format(topic=row["topic"])
        yield {"prompt": row["prompt"], "answer": line}


def vocabulary() -> Iterator[str]:
    """Every text that a tokenizer for this task should know."""
    for row in _requests(TOPICS):
        yield row["prompt"]
        yield from (line.format(topic=row["topic"]) for line in LINES[row["answer"]])


def has_the_mood(sample: RewardSample) -> float:
    """Reward function: how clearly the line has the mood of the request, from -1 to 1.

    (right - wrong) / (right + wrong) with the words of the requested and of the other mood. 0 for a
    line with no such words, without the topic, or cut off.
    """
    asked = sample.answer
    assert asked in WORDS, f"answer is {asked!r}; it must be {HAPPY!r} or {SAD!r}"
    words = _words(sample.response)
    if sample.finish_reason != "stop" or sample.columns["topic"] not in words:
        return 0.0
    right = sum(word in WORDS[asked] for word in words)
    wrong = sum(word in WORDS[_other(asked)] for word in words)
    return (right - wrong) / (right + wrong) if right + wrong else 0.0


def is_well_formed(sample: RewardSample) -> float:
    """Reward function: 1.0 for a finished line about the topic, word for word as demonstrated."""
    lines = (line.format(topic=sample.columns["topic"]) for mood in LINES for line in LINES[mood])
    return float(sample.finish_reason == "stop" and sample.response.strip() in lines)


def _requests(topics: Sequence[str]) -> Iterator[dict[str, str]]:
    for topic in topics:
        for mood in (HAPPY, SAD):
            for request in _REQUESTS:
                prompt = request.format(mood=mood, topic=topic)
                yield {"prompt": prompt, "answer": mood, "topic": topic}


def _other(mood: str) -> str:
    return SAD if mood == HAPPY else HAPPY


def _words(text: str) -> list[str]:
    return [word.strip(".,!?").lower() for word in text.split()]
