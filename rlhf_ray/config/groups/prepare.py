"""What the data stage does with its sources; the sources themselves are in `prepare_sources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.setting import setting


@dataclass
class PrepareConfig:
    """`stage=prepare_data`: sources, cleaning, blending, splits. See docs/data.md."""

    sources: dict[str, Any] = setting(
        {},
        "Sources by name; each has path and layout or kind, and what docs/data.md lists.",
    )
    evaluation_sets: dict[str, Any] = setting(
        {},
        "Evaluation sets by name, written as sources are; training samples that contain one of "
        "their prompts are removed.",
    )
    on_bad_row: str = setting(
        "error",
        "A row of a wrong form ends the run before any work, or is removed and counted.",
        choices=("error", "skip"),
    )
    rankings: str = setting(
        "lists",
        "A ranked list stays one sample, or becomes one preference for each of its pairs.",
        choices=("lists", "pairs"),
    )
    mend_encoding: bool = setting(True, "Mend wrongly decoded text and control characters.")
    min_characters: int | None = setting(
        None, "Shorter samples are removed.", unit="characters", minimum=1
    )
    max_characters: int | None = setting(
        None, "Longer samples are removed.", unit="characters", minimum=1
    )
    max_tokens: int | None = setting(
        None,
        "Longer samples are removed; counted with the tokenizer of model.path, without a chat "
        "template.",
        unit="tokens",
        minimum=1,
    )
    languages: list[str] = setting(
        [], "Languages to keep, as ISO 639-1 codes such as en; empty keeps all."
    )
    language_confidence: float = setting(
        0.8,
        "How sure the identification must be that a text is in another language.",
        above=0,
        maximum=1,
    )
    language_min_characters: int = setting(
        40, "Shorter texts tell no language and are kept.", unit="characters", minimum=1
    )
    personal_data: str = setting(
        "report",
        "Mail addresses, telephone and card numbers: not looked for, counted, masked, or their "
        "samples removed.",
        choices=("off", "report", "mask", "remove"),
    )
    phone_region: str | None = setting(
        None,
        "Country (ISO 3166 code such as US) whose national telephone numbers are found too; null "
        "finds those with a country code only.",
    )
    leak_words: int = setting(
        13,
        "A sample contains an evaluation prompt if so many words in a row are the same; a shorter "
        "prompt must be a whole text of the sample.",
        unit="words",
        minimum=3,
    )
    duplicates: str = setting(
        "exact",
        "Which repetitions are removed: none, equal ones, or also those that are nearly equal.",
        choices=("keep", "exact", "near"),
    )
    near_similarity: float = setting(
        0.8,
        "Share of word groups that two samples have in common to be nearly equal (Jaccard).",
        minimum=0.5,
        maximum=1,
    )
    eval_fraction: float = setting(
        0.05, "Share of the samples that go to eval.jsonl.", minimum=0, below=1
    )
    split: list[float] = setting(
        [],
        "Shares of the stages sft, reward_model and rl, such as [2,4,4]; empty writes one set.",
    )
    split_seed: int = setting(0, "Another number splits another way.", minimum=0)
    total_samples: int | None = setting(
        None,
        "Samples in each train.jsonl, by the weights of the sources; null takes as many as the "
        "weights allow.",
        unit="samples",
        minimum=1,
    )
    max_epochs: float = setting(
        1.0, "How often a sample of a source may be repeated.", unit="epochs", above=0
    )
    shuffle: bool = setting(
        True, "Mix the sources by the run's seed; false keeps their order, one after the other."
    )
