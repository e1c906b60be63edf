"""Settings of the data stage; its sources are in `prepare_sources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.setting import setting


@dataclass
class PrepareConfig:
    """`stage=prepare_data`: sources, cleaning, blending, splits. See docs/data.md."""

    sources: dict[str, Any] = setting(
        {},
        "Sources by name; each has a path, a layout or kind, and the keys in docs/data.md.",
    )
    evaluation_sets: dict[str, Any] = setting(
        {},
        "Evaluation sets by name, in the form of sources; training samples that contain one of "
        "their prompts are removed.",
    )
    on_bad_row: str = setting(
        "error",
        "For a malformed row: end the run before any work, or remove and count the row.",
        choices=("error", "skip"),
    )
    rankings: str = setting(
        "lists",
        "Keep a ranked list as one sample, or make one preference of each pair.",
        choices=("lists", "pairs"),
    )
    mend_encoding: bool = setting(True, "Fix wrongly decoded text and control characters.")
    min_characters: int | None = setting(
        None, "Remove shorter samples; null keeps them.", unit="characters", minimum=1
    )
    max_characters: int | None = setting(
        None, "Remove longer samples; null keeps them.", unit="characters", minimum=1
    )
    max_tokens: int | None = setting(
        None,
        "Remove longer samples, counted with the tokenizer of model.path and without a chat "
        "template; null keeps them.",
        unit="tokens",
        minimum=1,
    )
    languages: list[str] = setting(
        [], "Languages to keep, as ISO 639-1 codes such as en; empty keeps all."
    )
    language_confidence: float = setting(
        0.8,
        "Confidence above which a text in another language is removed.",
        above=0,
        maximum=1,
    )
    language_min_characters: int = setting(
        40, "Keep shorter texts, whose language cannot be identified.", unit="characters", minimum=1
    )
    personal_data: str = setting(
        "report",
        "Mail addresses, telephone and card numbers: ignore, count, mask, or remove their samples.",
        choices=("off", "report", "mask", "remove"),
    )
    phone_region: str | None = setting(
        None,
        "Country (ISO 3166 code such as US) whose national telephone numbers are found too; null "
        "finds only numbers with a country code.",
    )
    leak_words: int = setting(
        13,
        "Equal words in a row that make a sample contain an evaluation prompt; a shorter prompt "
        "must equal a whole text of the sample.",
        unit="words",
        minimum=3,
    )
    duplicates: str = setting(
        "exact",
        "Duplicates: keep all, remove exact ones, or also remove near ones.",
        choices=("keep", "exact", "near"),
    )
    near_similarity: float = setting(
        0.8,
        "Jaccard similarity of word groups above which two samples are near duplicates.",
        minimum=0.5,
        maximum=1,
    )
    eval_fraction: float = setting(0.05, "Share of the samples for eval.jsonl.", minimum=0, below=1)
    split: list[float] = setting(
        [],
        "Shares of the stages sft, reward_model and rl, such as [2,4,4]; empty writes one set.",
    )
    split_seed: int = setting(0, "Seed of the splits.", minimum=0)
    total_samples: int | None = setting(
        None,
        "Samples in each train.jsonl, divided by the weights of the sources; null takes the most "
        "that the weights allow.",
        unit="samples",
        minimum=1,
    )
    max_epochs: float = setting(1.0, "Most uses of a sample of a source.", unit="epochs", above=0)
    shuffle: bool = setting(
        True, "Mix the sources with the run's seed; false keeps them one after the other."
    )
